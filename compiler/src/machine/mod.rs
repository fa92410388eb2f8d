//! Machines as data: memories, what joins them, and how fast each part works.
//!
//! One form for what is stated of a machine one does not have and for what `tinyforge bench` measured on this one: a
//! TOML file. Rates may be absent; then plans can be made, and times cannot be predicted. Invariant: a [`Machine`] that
//! [`Machine::parse`] returned has names that lead somewhere, and every figure is finite and positive. Not for what a
//! plan must know: that is a [`Target`].

mod check;

use crate::target::Target;
use serde::{Deserialize, Serialize};
use tinyforge_plan::DType;

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Where the figures are from: who measured or stated them, and when.
    pub figures: String,
    /// Name of the space that kernels work in.
    pub near: String,
    /// Worker threads that the rates are for, where they depend on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// What sets it apart.
    #[serde(default)]
    pub traits: Traits,
    /// How fast it computes.
    #[serde(default)]
    pub rates: Rates,
    /// Its memories.
    #[serde(rename = "space")]
    pub spaces: Vec<Space>,
    /// What carries bytes from memory to memory, one row a direction.
    #[serde(rename = "link", default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// What kernels reach of the rates, where it was measured.
    #[serde(rename = "kernel", default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelRate>,
}

/// What sets a machine apart when work is scheduled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traits {
    /// One memory for host and device: nothing is transferred between them.
    pub unified: bool,
    /// One queue for kernels and copies, which therefore never overlap.
    pub single_queue: bool,
    /// The host's work, the optimizer's for one, is done by the cores that compute.
    pub shares_cores: bool,
}

/// Sustained rates of the whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// FLOP/s of a large dense product of f32 factors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f32: Option<f64>,
    /// The same of f16 factors with f32 sums.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f16: Option<f64>,
    /// The same of bf16 factors with f32 sums.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bf16: Option<f64>,
    /// Operations a second of a large product of int8 factors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub i8: Option<f64>,
    /// Bytes a second that kernels read and write in the near memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near_bytes_per_second: Option<f64>,
    /// Bytes a second that the optimizer reads and writes in the host's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimizer_bytes_per_second: Option<f64>,
    /// Seconds from one kernel to the next beside their work.
    pub launch_s: f64,
}

impl Rates {
    /// FLOP/s with factors of this type.
    pub fn flops(&self, factors: DType) -> Option<f64> {
        match factors {
            DType::F32 => self.f32,
            DType::F16 => self.f16,
            DType::BF16 => self.bf16,
            DType::I8 => self.i8,
            _ => None,
        }
    }
}

/// A memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Space {
    /// `ram`, `vram`, `pinned`, `disk`, `sram` or `flash`.
    pub name: String,
    /// Its size, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What places in it must be multiples of.
    #[serde(default = "align_bytes")]
    pub align_bytes: u32,
}

fn align_bytes() -> u32 {
    Target::CPU.align_bytes
}

/// One direction of what joins two memories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Where bytes come from.
    pub from: String,
    /// Where they go.
    pub to: String,
    /// Sustained rate of large transfers, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
    /// From the request of a transfer to its first byte.
    #[serde(default)]
    pub latency_s: f64,
}

/// What bounds a kernel call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Arithmetic.
    Flops,
    /// Traffic with the near memory.
    Bytes,
}

/// What calls of one kernel reach, by their size: `ideal_s[i] / efficiency[i]` seconds for what takes `ideal_s[i]` at
/// the machine's rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRate {
    /// The kernel.
    pub kernel: String,
    /// Number type of its arithmetic.
    pub factors: String,
    /// How its weights are stored.
    pub weights: String,
    /// What bounds the calls.
    pub limit: Limit,
    /// Seconds at the machine's rates, ascending.
    pub ideal_s: Vec<f64>,
    /// The share of the rate that was reached; above 1 where operands lie in caches.
    pub efficiency: Vec<f64>,
}

/// What is wrong with a machine's description, all of it.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum MachineError {
    /// It is not of this form.
    #[error("not a machine's description: {0}")]
    Form(String),
    /// Names or figures that cannot be.
    #[error("{}", .0.join("; "))]
    Figures(Vec<String>),
}

/// Descriptions by name, with what is true of all such machines: no sizes and no rates.
const BUILT_IN: [(&str, &str); 6] = [
    ("cpu", include_str!("cpu.toml")),
    ("wgpu", include_str!("wgpu.toml")),
    ("wgpu-unified", include_str!("wgpu-unified.toml")),
    ("cuda", include_str!("cuda.toml")),
    ("cortex-m4", include_str!("cortex-m4.toml")),
    ("cortex-m7", include_str!("cortex-m7.toml")),
];

impl Machine {
    /// Reads a description.
    ///
    /// # Errors
    /// It is none, or has figures that cannot be; all of them are named.
    pub fn parse(text: &str) -> Result<Machine, MachineError> {
        let machine: Machine =
            toml::from_str(text).map_err(|e| MachineError::Form(e.to_string().trim().to_string()))?;
        match check::faults(&machine) {
            faults if faults.is_empty() => Ok(machine),
            faults => Err(MachineError::Figures(faults)),
        }
    }

    /// The description as a file.
    pub fn print(&self) -> String {
        toml::to_string(self).expect("plain data can be written")
    }

    /// Names of the descriptions that need no file.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|row| row.0)
    }

    /// The description of this name.
    pub fn from_name(name: &str) -> Option<Machine> {
        let text = BUILT_IN.iter().find(|row| row.0 == name)?.1;
        Some(Machine::parse(text).expect("what is built in is tested"))
    }

    /// The space of this name.
    pub fn space(&self, name: &str) -> Option<&Space> {
        self.spaces.iter().find(|s| s.name == name)
    }

    /// The space that kernels work in.
    pub fn near_space(&self) -> &Space {
        self.space(&self.near).expect("checked when it was read")
    }

    /// Index of the link between two spaces.
    pub fn link(&self, from: &str, to: &str) -> Option<usize> {
        self.links.iter().position(|l| l.from == from && l.to == to)
    }

    /// What plans for this machine are made for.
    pub fn target(&self) -> Target {
        let align_bytes = self.near_space().align_bytes;
        match self.near.as_str() {
            "sram" => Target { align_bytes, ..Target::CORTEX_M4 },
            "vram" => Target { name: "gpu", near: "vram", align_bytes, ..Target::CPU },
            _ => Target { align_bytes, ..Target::CPU },
        }
    }

    /// What a kernel reaches in a call of this size: the nearest row's efficiency, between its points by the logarithm
    /// of the size, beyond them that of the last. `None` where the kernel was not measured.
    pub fn efficiency(&self, call: &Call, ideal_s: f64) -> Option<f64> {
        let is_quantised = |row: &KernelRate| DType::from_name(&row.weights).is_some_and(DType::is_quantised);
        let likeness = |row: &&KernelRate| {
            let is_alike = is_quantised(row) == call.weights.is_quantised();
            let is_same = [row.limit == call.limit, row.factors == call.factors.name()];
            (is_same, is_alike, row.weights == call.weights.name())
        };
        let row = self.kernels.iter().filter(|row| row.kernel == call.kernel).max_by_key(likeness)?;
        Some(row.at(ideal_s))
    }
}

/// What the efficiency of a kernel call depends on, beside its size.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The kernel.
    pub kernel: &'a str,
    /// Number type of its arithmetic.
    pub factors: DType,
    /// How its weights are stored.
    pub weights: DType,
    /// What bounds it.
    pub limit: Limit,
}

impl KernelRate {
    fn at(&self, ideal_s: f64) -> f64 {
        let (x, y) = (&self.ideal_s, &self.efficiency);
        let above = x.partition_point(|&x| x < ideal_s);
        match above {
            0 => y[0],
            n if n == x.len() => y[n - 1],
            n => {
                let share = (ideal_s / x[n - 1]).ln() / (x[n] / x[n - 1]).ln();
                (y[n - 1].ln() + share * (y[n] / y[n - 1]).ln()).exp()
            }
        }
    }
}
