//! What a schedule takes at least: each resource's work, were it never to wait.

use super::seconds::{flops_s, optimizer_s};
use super::{CostError, Schedule, check, link_s, takes_queue};
use crate::machine::Machine;

/// Something that works are done by, one at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resource {
    /// The device's kernels. Where cores are shared or there is one queue, what takes their time is part of it.
    Compute,
    /// The host's updates.
    Host,
    /// A link: from where, to where.
    Link(String, String),
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Resource::Compute => f.write_str("compute"),
            Resource::Host => f.write_str("host updates"),
            Resource::Link(from, to) => write!(f, "{from} to {to}"),
        }
    }
}

/// Busy time of every resource.
#[derive(Clone, PartialEq, Debug)]
pub struct Bound {
    /// Resources with their seconds: compute, host, then the machine's links in order.
    pub busy: Vec<(Resource, f64)>,
}

impl Bound {
    /// The bound: the largest busy time.
    pub fn seconds(&self) -> f64 {
        self.busy.iter().fold(0.0, |most, (_, s)| most.max(*s))
    }

    /// Which resource it is.
    pub fn resource(&self) -> &Resource {
        let most = self.busy.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        &most.expect("compute is always among them").0
    }

    /// The bound of bounds of one machine, each so many times, where each resource goes on from one to the next.
    pub fn sum(parts: &[(Bound, f64)]) -> Bound {
        let Some((first, _)) = parts.first() else { return Bound { busy: vec![(Resource::Compute, 0.0)] } };
        let total = |i: usize| parts.iter().map(|(bound, times)| times * bound.busy[i].1).sum();
        Bound { busy: first.busy.iter().enumerate().map(|(i, (resource, _))| (resource.clone(), total(i))).collect() }
    }
}

/// The bound: arithmetic at the machine's rates, the optimizer's bytes at theirs, every link's bytes at its own.
/// Source: the roofline of Williams et al. 2009, with a roof a resource.
///
/// # Errors
/// A rate is missing, or a transfer names what does not exist.
pub fn bound(machine: &Machine, schedule: &Schedule) -> Result<Bound, CostError> {
    check(machine, schedule)?;
    let (mut compute_s, mut host_s) = (0.0, 0.0);
    for work in &schedule.works {
        compute_s += flops_s(machine, work)?;
        let update_s = optimizer_s(machine, work)?;
        let is_host = work.on_host && !machine.traits.shares_cores;
        *(if is_host { &mut host_s } else { &mut compute_s }) += update_s;
    }
    let mut links_s = vec![0.0; machine.links.len()];
    for transfer in &schedule.transfers {
        for link in [Some(transfer.link), transfer.files].into_iter().flatten() {
            let s = link_s(machine, link, transfer.bytes)?;
            *(if takes_queue(machine, link) { &mut compute_s } else { &mut links_s[link as usize] }) += s;
        }
    }
    let mut busy = vec![(Resource::Compute, compute_s), (Resource::Host, host_s)];
    let name = |i: usize| Resource::Link(machine.links[i].from.clone(), machine.links[i].to.clone());
    busy.extend(links_s.into_iter().enumerate().map(|(i, s)| (name(i), s)));
    Ok(Bound { busy })
}
