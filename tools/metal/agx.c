/* What a compute kernel becomes on an Apple GPU of the first M generation (G13), by Mesa's compiler and without such a GPU.
 *
 *     AGX_MESA_DEBUG=shaderdb ./agx FILE.spv...     instructions, cycles of the pipes, registers, spills (on stderr)
 *     AGX_MESA_DEBUG=shaders ./agx FILE.spv         the instructions themselves
 *
 * Prints a line for each file, which must have an entry point `main`. Buffers are passed as Metal passes them: each one's
 * address is in a uniform register. tools/metal/build_agx.sh builds it against Mesa 25.0.
 */
#include "asahi/compiler/agx_compile.h"
#include "asahi/compiler/agx_nir.h"
#include "compiler/glsl_types.h"
#include "compiler/spirv/nir_spirv.h"
#include "compiler/spirv/spirv_info.h"
#include "libagx_shaders.h"
#include "nir.h"
#include "nir_builder.h"
#include "nir_serialize.h"
#include "util/blob.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Uniform registers (of 16 bits): the address of immediate data, those of so many buffers, the size of the grid. */
enum { IMMEDIATES = 0, BUFFERS = 8, MAX_BUFFERS = 22, GRID = BUFFERS + 4 * MAX_BUFFERS, UNIFORMS = GRID + 8 };

static void size_in_shared_memory(const struct glsl_type *type, unsigned *size, unsigned *align)
{
   unsigned bytes = glsl_type_is_boolean(type) ? 4 : glsl_get_bit_size(type) / 8;
   *size = bytes * glsl_get_vector_elements(type);
   *align = bytes;
}

static bool lower_inputs(nir_builder *b, nir_intrinsic_instr *instr, void *unused)
{
   b->cursor = nir_before_instr(&instr->instr);
   switch (instr->intrinsic) {
   case nir_intrinsic_vulkan_resource_index: {
      unsigned binding = nir_intrinsic_binding(instr);
      nir_def *address = nir_load_preamble(b, 1, 64, .base = BUFFERS + 4 * binding);
      nir_def *low = nir_unpack_64_2x32_split_x(b, address), *high = nir_unpack_64_2x32_split_y(b, address);
      nir_def_replace(&instr->def, nir_vec4(b, low, high, nir_imm_int(b, -1), nir_imm_int(b, 0)));
      return true;
   }
   case nir_intrinsic_load_vulkan_descriptor:
   case nir_intrinsic_vulkan_resource_reindex:
      nir_def_replace(&instr->def, instr->src[0].ssa);
      return true;
   case nir_intrinsic_load_push_constant: {
      nir_def *base = nir_load_preamble(b, 1, 64, .base = IMMEDIATES);
      nir_def *offset = nir_u2u64(b, nir_iadd_imm(b, instr->src[0].ssa, nir_intrinsic_base(instr)));
      nir_def *value =
         nir_load_global_constant(b, nir_iadd(b, base, offset), 4, instr->def.num_components, instr->def.bit_size);
      nir_def_replace(&instr->def, value);
      return true;
   }
   case nir_intrinsic_load_num_workgroups: {
      nir_def *sizes[3];
      for (int i = 0; i < 3; i++)
         sizes[i] = nir_load_preamble(b, 1, 32, .base = GRID + 2 * i);
      nir_def_replace(&instr->def, nir_vec(b, sizes, 3));
      return true;
   }
   default:
      return false;
   }
}

/* The passes that Mesa's own driver for these GPUs runs before its compiler. */
static void lower(nir_shader *nir, const nir_shader *library)
{
   bool progress;
   NIR_PASS(_, nir, nir_lower_variable_initializers, nir_var_function_temp);
   NIR_PASS(_, nir, nir_lower_returns);
   NIR_PASS(_, nir, nir_inline_functions);
   NIR_PASS(_, nir, nir_copy_prop);
   NIR_PASS(_, nir, nir_opt_deref);
   nir_remove_non_entrypoints(nir);
   NIR_PASS(_, nir, nir_lower_variable_initializers, ~0);
   NIR_PASS(_, nir, nir_split_var_copies);
   NIR_PASS(_, nir, nir_split_per_member_structs);
   NIR_PASS(_, nir, nir_lower_global_vars_to_local);
   do {
      progress = false;
      NIR_PASS(progress, nir, nir_lower_vars_to_ssa);
      NIR_PASS(progress, nir, nir_copy_prop);
      NIR_PASS(progress, nir, nir_opt_dce);
      NIR_PASS(progress, nir, nir_opt_constant_folding);
      NIR_PASS(progress, nir, nir_opt_loop);
      NIR_PASS(progress, nir, nir_opt_loop_unroll);
   } while (progress);
   NIR_PASS(_, nir, nir_lower_system_values);
   nir_lower_compute_system_values_options none = {0};
   NIR_PASS(_, nir, nir_lower_compute_system_values, &none);
   nir_shader_gather_info(nir, nir_shader_get_entrypoint(nir));
   NIR_PASS(_, nir, nir_lower_global_vars_to_local);
   NIR_PASS(_, nir, nir_split_var_copies);
   NIR_PASS(_, nir, nir_split_struct_vars, nir_var_function_temp);
   agx_preprocess_nir(nir, NULL);
   NIR_PASS(_, nir, nir_lower_load_const_to_scalar);
   NIR_PASS(_, nir, nir_lower_var_copies);
   const nir_opt_access_options access = {.is_vulkan = true};
   NIR_PASS(_, nir, nir_opt_access, &access);
   NIR_PASS(_, nir, nir_lower_explicit_io, nir_var_mem_push_const, nir_address_format_32bit_offset);
   NIR_PASS(_, nir, nir_lower_memory_model);
   NIR_PASS(_, nir, nir_shader_intrinsics_pass, lower_inputs, nir_metadata_control_flow, NULL);
   NIR_PASS(_, nir, nir_lower_explicit_io, nir_var_mem_ssbo, nir_address_format_64bit_global_32bit_offset);
   do {
      progress = false;
      NIR_PASS(progress, nir, nir_opt_constant_folding);
      NIR_PASS(progress, nir, nir_opt_algebraic);
      NIR_PASS(progress, nir, nir_copy_prop);
      NIR_PASS(progress, nir, nir_opt_dce);
   } while (progress);
   nir->info.shared_size = 0;
   NIR_PASS(_, nir, nir_lower_vars_to_explicit_types, nir_var_mem_shared, size_in_shared_memory);
   NIR_PASS(_, nir, nir_lower_explicit_io, nir_var_mem_shared, nir_address_format_32bit_offset);
   agx_preprocess_nir(nir, library);
   NIR_PASS(_, nir, nir_opt_if, nir_opt_if_optimize_phi_true_false | nir_opt_if_avoid_64bit_phis);
}

static void *read_file(const char *name, size_t *size)
{
   FILE *file = fopen(name, "rb");
   if (!file)
      return NULL;
   fseek(file, 0, SEEK_END);
   *size = ftell(file);
   rewind(file);
   void *bytes = malloc(*size);
   if (bytes && fread(bytes, 1, *size, file) != *size) {
      free(bytes);
      bytes = NULL;
   }
   fclose(file);
   return bytes;
}

static bool compile(void *memory, const char *name, const nir_shader *library)
{
   size_t size;
   uint32_t *words = read_file(name, &size);
   if (!words) {
      perror(name);
      return false;
   }
   struct spirv_capabilities capabilities;
   memset(&capabilities, 1, sizeof capabilities);
   struct spirv_to_nir_options options = {
      .environment = NIR_SPIRV_VULKAN,
      .capabilities = &capabilities,
      .ssbo_addr_format = nir_address_format_64bit_global_32bit_offset,
      .phys_ssbo_addr_format = nir_address_format_64bit_global,
      .ubo_addr_format = nir_address_format_64bit_global_32bit_offset,
      .shared_addr_format = nir_address_format_32bit_offset,
      .min_ssbo_alignment = 16,
      .min_ubo_alignment = 16,
      .subgroup_size = SUBGROUP_SIZE_REQUIRE_32,
   };
   nir_shader *nir =
      spirv_to_nir(words, size / 4, NULL, 0, MESA_SHADER_COMPUTE, "main", &options, &agx_nir_options);
   free(words);
   if (!nir) {
      fprintf(stderr, "%s: no SPIR-V that Mesa reads\n", name);
      return false;
   }
   ralloc_steal(memory, nir);
   lower(nir, library);
   struct agx_shader_key key = {
      .reserved_preamble = UNIFORMS,
      .dev.needs_g13x_coherency = U_TRISTATE_YES,
      .libagx = library,
      .has_scratch = true,
      .promote_constants = true,
   };
   struct agx_shader_part out;
   agx_compile_shader_nir(nir, &key, NULL, &out);
   printf("%s: %u bytes, %u registers of 16 bits, %u bytes of shared memory, %u of scratch\n", name,
          out.info.main_size, out.info.nr_gprs, out.info.local_size, out.info.scratch_size);
   fflush(stdout);
   return true;
}

int main(int count, char **names)
{
   void *memory = ralloc_context(NULL);
   glsl_type_singleton_init_or_ref();
   struct blob_reader blob;
   blob_reader_init(&blob, (void *)libagx_0_nir, sizeof libagx_0_nir);
   const nir_shader *library = nir_deserialize(memory, &agx_nir_options, &blob);
   bool all = true;
   for (int i = 1; i < count; i++)
      all &= compile(memory, names[i], library);
   return all ? 0 : 1;
}
