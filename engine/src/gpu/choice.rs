//! What `auto` takes: a graphics card with memory of its own, or the processor.
//!
//! Invariant: the choice follows from the hardware and its drivers alone, never from what is free just now, so that a
//! command computes the same bytes from run to run on one machine. A card of NVIDIA comes before what wgpu shows of it.
//! An adapter in software is the processor with a detour; one that shares the processor's memory would take twice from
//! one budget: neither is taken.

use super::cuda;
use crate::runner::DeviceChoice;

/// A device, and why it was taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// What runs the kernels.
    pub device: DeviceChoice,
    /// Its name, or what speaks against every other one.
    pub why: String,
}

/// What a run takes that leaves the choice to this machine.
pub fn choose() -> Choice {
    first(&[(DeviceChoice::Cuda, card()), (DeviceChoice::Wgpu, adapter())])
}

/// The first device that was found, by its name; the processor where each has a reason against it.
fn first(looked: &[(DeviceChoice, Result<String, String>)]) -> Choice {
    let found = looked.iter().find_map(|(device, found)| Some((*device, found.as_ref().ok()?)));
    if let Some((device, name)) = found {
        return Choice { device, why: name.clone() };
    }
    let against = |(device, found): &(DeviceChoice, Result<String, String>)| {
        let why = found.as_ref().err()?;
        Some(format!("{}: {why}", device.name()))
    };
    let against: Vec<String> = looked.iter().filter_map(against).collect();
    Choice { device: DeviceChoice::Cpu, why: format!("no graphics card to be used ({})", against.join("; ")) }
}

/// The name of the card that CUDA takes, where it and the compiler of kernels are there.
fn card() -> Result<String, String> {
    let driver = cuda::open_default().map_err(|e| e.to_string())?;
    #[cfg(feature = "cuda")]
    cuda::nvrtc::version()?;
    Ok(driver.facts()?.name)
}

/// The name of the adapter that wgpu takes, where that is a card with memory of its own.
#[cfg(feature = "wgpu")]
fn adapter() -> Result<String, String> {
    let adapter = super::wgpu::default_adapter().map_err(|e| e.to_string())?;
    suits(&adapter.name, adapter.kind, adapter.lacks())
}

#[cfg(not(feature = "wgpu"))]
fn adapter() -> Result<String, String> {
    Err(super::GpuError::not_built("wgpu").to_string())
}

/// Whether an adapter of a kind is taken that lacks this.
#[cfg(feature = "wgpu")]
fn suits(name: &str, kind: &str, lacks: Option<String>) -> Result<String, String> {
    match (kind, lacks) {
        ("discrete", None) => Ok(name.to_string()),
        ("discrete", Some(why)) => Err(format!("{name}: {why}")),
        _ => Err(format!("{name} is {kind}, not a card with memory of its own; `--device wgpu` takes it")),
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceChoice, choose, first};

    const CUDA: DeviceChoice = DeviceChoice::Cuda;
    const WGPU: DeviceChoice = DeviceChoice::Wgpu;

    #[test]
    fn the_first_card_is_taken_and_without_one_the_processor() {
        let found = |name: &str| Ok(name.to_string());
        let not = |why: &str| Err(why.to_string());
        let taken = |looked: &[_]| {
            let choice = first(looked);
            (choice.device, choice.why)
        };
        assert_eq!(taken(&[(CUDA, found("a")), (WGPU, found("b"))]), (CUDA, "a".to_string()));
        assert_eq!(taken(&[(CUDA, not("no driver")), (WGPU, found("b"))]), (WGPU, "b".to_string()));
        let (device, why) = taken(&[(CUDA, not("no driver")), (WGPU, not("software"))]);
        assert_eq!(device, DeviceChoice::Cpu);
        assert_eq!(why, "no graphics card to be used (cuda: no driver; wgpu: software)");
        assert_eq!(choose(), choose());
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn only_cards_with_memory_of_their_own_suit() {
        assert_eq!(super::suits("RTX", "discrete", None), Ok("RTX".to_string()));
        for kind in ["integrated", "virtual", "software", "other"] {
            let why = super::suits("it", kind, None).expect_err("is no card");
            assert!(why.contains(kind) && why.contains("--device wgpu"), "{why}");
        }
        let why = super::suits("old", "discrete", Some("too few buffers".to_string())).expect_err("lacks something");
        assert_eq!(why, "old: too few buffers");
    }
}
