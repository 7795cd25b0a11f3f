//! Which vector instructions the kernels use, chosen once when a [`super::Cpu`] is made.

use super::dense::Dense;
use super::kernel::Kernel;
use crate::{Format, Precision};

/// What chooses kernels: an instruction set and how precisely it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arithmetic {
    pub(crate) isa: Isa,
    pub(crate) precision: Precision,
}

impl Arithmetic {
    /// The kernels for a format; the exact ones where there are no fast ones.
    pub(crate) const fn kernel(self, format: Format) -> Kernel {
        let exact = self.isa.kernel(format);
        let fast = match (self.precision, self.isa.0) {
            (Precision::Exact, _) | (_, Kind::Scalar) => exact,
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Avx2) => super::avx2::fast_kernel(format, exact),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::AvxVnni) => super::avx_vnni::fast_kernel(format, exact),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Avx512) => exact,
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Avx512Vnni) => super::vnni::fast_kernel(format, exact),
            #[cfg(target_arch = "aarch64")]
            (_, Kind::Neon) => exact,
            #[cfg(target_arch = "aarch64")]
            (_, Kind::NeonDot) => super::neon_dot::fast_kernel(format, exact),
        };
        match self.precision {
            Precision::Close => fast,
            Precision::Exact | Precision::Fast => Kernel { rest: None, ..fast },
        }
    }
}

/// An instruction set with kernels of its own.
///
/// The fields of the vector sets are private to keep a value a proof that this machine has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl Isa {
    /// Plain code for any machine.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// Every set that this machine can run, slowest first; plain code is always there.
    pub fn available() -> Vec<Self> {
        let mut sets = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            sets.extend(avx2.then_some(Self(Kind::Avx2)));
            sets.extend((avx2 && is_x86_feature_detected!("avxvnni")).then_some(Self(Kind::AvxVnni)));
            let vnni = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vbmi");
            sets.extend((avx2 && avx512).then_some(Self(Kind::Avx512)));
            sets.extend((avx2 && avx512 && vnni).then_some(Self(Kind::Avx512Vnni)));
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            sets.push(Self(Kind::Neon));
            let dot = std::arch::is_aarch64_feature_detected!("dotprod");
            sets.extend(dot.then_some(Self(Kind::NeonDot)));
        }
        sets
    }

    /// The fastest set that this machine can run.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::SCALAR)
    }

    /// A name for people.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => "AVX-VNNI",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "AVX-512 VNNI",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "NEON",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "NEON, dot products",
        }
    }

    /// The exact kernels for a format. That `self` exists makes them safe to run on this machine.
    const fn kernel(self, format: Format) -> Kernel {
        match self.0 {
            Kind::Scalar => super::scalar::kernel(format),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::AvxVnni => super::avx2::kernel(format),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => super::avx512::kernel(format),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => super::vnni::kernel(format),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot => super::neon::kernel(format),
        }
    }

    /// The kernels over f32 rows.
    pub(crate) const fn dense(self) -> Dense {
        match self.0 {
            Kind::Scalar => super::scalar::DENSE,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::AvxVnni => super::avx2::DENSE,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Avx512Vnni => super::avx512::DENSE,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot => super::neon::DENSE,
        }
    }
}
