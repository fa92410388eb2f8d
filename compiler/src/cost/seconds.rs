//! Seconds of one work, were it alone.

use super::{CostError, Work, no_rate};
use crate::machine::{Call, Limit, Machine};
use tinyforge_plan::DType;

/// What a work takes, and how that is known.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Measured {
    /// Seconds.
    pub seconds: f64,
    /// Whether the machine's profile has the kernel; without it the rates are taken for reached.
    pub is_measured: bool,
}

/// `max(floor, max(flops / F, near_bytes / B) / e) + launch`: arithmetic and traffic with the near memory overlap, `e`
/// is what the kernel was measured to reach at that size, and `floor` is what no kernel is taken to beat, `flops / F`
/// and the optimizer's bytes at their rate. Without a rate of the near memory, traffic costs nothing.
///
/// # Errors
/// The machine has no rate for the number type, or none for the optimizer.
pub fn seconds(machine: &Machine, work: &Work) -> Result<Measured, CostError> {
    let floor_s = flops_s(machine, work)? + optimizer_s(machine, work)?;
    let launch_s = machine.rates.launch_s;
    let Some((limit, ideal_s)) = ideal(machine, work) else {
        return Ok(Measured { seconds: floor_s + launch_s, is_measured: false });
    };
    let call = Call { kernel: &work.kernel, factors: factors(machine, work), weights: work.weights, limit };
    let efficiency = machine.efficiency(&call, ideal_s);
    let seconds = floor_s.max(ideal_s / efficiency.unwrap_or(1.0)) + launch_s;
    Ok(Measured { seconds, is_measured: efficiency.is_some() })
}

/// What bounds a work of the device and its seconds at the machine's rates: the size that efficiencies go by. `None`
/// for works that take no time there, and where a rate is missing.
pub fn ideal(machine: &Machine, work: &Work) -> Option<(Limit, f64)> {
    let flops_s = flops_s(machine, work).ok()?;
    let bytes_s = machine.rates.near_bytes_per_second.map_or(0.0, |rate| work.near_bytes as f64 / rate);
    let (limit, ideal_s) = if flops_s >= bytes_s { (Limit::Flops, flops_s) } else { (Limit::Bytes, bytes_s) };
    (ideal_s > 0.0 && !work.on_host).then_some((limit, ideal_s))
}

/// Arithmetic at the machine's rate. What the host does is no arithmetic of the device.
pub(super) fn flops_s(machine: &Machine, work: &Work) -> Result<f64, CostError> {
    if work.flops == 0 || work.on_host {
        return Ok(0.0);
    }
    let factors = factors(machine, work);
    let rate = machine.rates.flops(factors);
    let rate = rate.ok_or_else(|| no_rate(machine, format!("FLOP/s in {}", factors.name())))?;
    Ok(work.flops as f64 / rate)
}

/// The number type of a work's arithmetic on a machine: what the step asks for, but that a processor's attention
/// multiplies in f32 where bf16 is allowed.
pub fn factors(machine: &Machine, work: &Work) -> DType {
    match machine.traits.shares_cores && work.kernel.starts_with("attention") {
        true => DType::F32,
        false => work.factors,
    }
}

/// The optimizer's bytes at their rate.
pub(super) fn optimizer_s(machine: &Machine, work: &Work) -> Result<f64, CostError> {
    if work.optimizer_bytes == 0 {
        return Ok(0.0);
    }
    // A device updates what lies in its own memory at that memory's rate.
    let rates = &machine.rates;
    let is_near = !work.on_host && !machine.traits.shares_cores;
    let rate = if is_near { rates.near_bytes_per_second } else { rates.optimizer_bytes_per_second };
    let what = if is_near { "near_bytes_per_second" } else { "optimizer_bytes_per_second" };
    Ok(work.optimizer_bytes as f64 / rate.ok_or_else(|| no_rate(machine, what))?)
}
