"""What every script shares: the architecture, the bit mix and where things lie."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parents[1] / "kimi-core" / "assets" / "kimi-tiny"

RANKS = 3840  # ordinary tokens; the 256 special ids follow
VOCAB = RANKS + 256
SEED = 20251123

# K2's named specials by offset from the first special id; the bool is HF's `special` flag.
# The other 230 ids are named <|reserved_token_ID|> with the absolute id.
SPECIALS = {
    0: ("[BOS]", True),
    1: ("[EOS]", True),
    2: ("<|im_end|>", True),
    3: ("<|im_user|>", True),
    4: ("<|im_assistant|>", True),
    6: ("<|start_header_id|>", True),
    7: ("<|end_header_id|>", True),
    9: ("[EOT]", True),
    10: ("<|im_system|>", True),
    11: ("<|tool_calls_section_begin|>", False),
    12: ("<|tool_calls_section_end|>", False),
    13: ("<|tool_call_begin|>", False),
    14: ("<|tool_call_argument_begin|>", False),
    15: ("<|tool_call_end|>", False),
    17: ("<|im_middle|>", True),
    18: ("<|media_begin|>", True),
    19: ("<|media_content|>", True),
    20: ("<|media_end|>", True),
    21: ("<|media_pad|>", True),
    22: ("<think>", False),
    23: ("</think>", False),
    254: ("[UNK]", True),
    255: ("[PAD]", True),
}
IM_END = RANKS + 2

CONFIG = dict(
    architectures=["DeepseekV3ForCausalLM"],
    model_type="kimi_k2",
    vocab_size=VOCAB,
    hidden_size=256,
    intermediate_size=768,
    moe_intermediate_size=192,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=4,
    n_shared_experts=1,
    n_routed_experts=16,
    num_experts_per_tok=4,
    routed_scaling_factor=2.827,
    kv_lora_rank=128,
    q_lora_rank=128,
    qk_rope_head_dim=32,
    qk_nope_head_dim=64,
    v_head_dim=64,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    norm_topk_prob=True,
    n_group=1,
    topk_group=1,
    moe_layer_freq=1,
    first_k_dense_replace=1,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope_theta=50000.0,
    # With 32 rope dimensions the ramp covers pairs 2..8 of 16: some untouched, some mixed, some
    # stretched, so a wrong YaRN shows.
    rope_scaling=dict(
        type="yarn",
        factor=32.0,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        original_max_position_embeddings=1024,
    ),
    attention_bias=False,
    attention_dropout=0.0,
    hidden_act="silu",
    tie_word_embeddings=False,
    bos_token_id=RANKS,
    eos_token_id=RANKS + 1,  # [EOS], as K2's own config says; generation_config has <|im_end|>
    pad_token_id=RANKS + 255,
    torch_dtype="bfloat16",
    num_nextn_predict_layers=0,
    use_cache=True,
    ep_size=1,
    aux_loss_alpha=0.0,
    seq_aux=True,
    pretraining_tp=1,
    initializer_range=0.02,
)

GROUP = 64
WIDE_LAYERS = {1, 5}  # MoE layers whose gate and up projections get 4 bits as well


def bits_of(path):
    """Bit width of a module in the mix of the real 3.985-bit K2 file, or None where it stays bf16.

    `path` is a module name in either layout (`switch_mlp` or `experts.N`).
    """
    if path.endswith(".mlp.gate") or "norm" in path:
        return None
    if "embed_tokens" in path:
        return 3
    if "lm_head" in path:
        return 6
    if "switch_mlp" in path or ".experts." in path:
        layer = int(path.split(".")[2])
        return 4 if "down_proj" in path or layer in WIDE_LAYERS else 3
    return 4
