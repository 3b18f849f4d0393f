//! What metadata nodes that answer say of themselves, and what is wrong with that. Pure.
//!
//! Invariants:
//! - A replica is told of only if it did not reach what its leader had at the first look, or does not know the leader,
//!   at the last look: lagging for a moment is no problem.

use std::collections::BTreeSet;

use engine::ids::NodeId;
use proto::internal::{GroupStatus, NodeStatusResponse};

/// Clocks that differ by more are told of.
const CLOCK_DIFFERENCE_MS_MAX: u64 = 10_000;

/// One node, at one look.
#[derive(Clone, Debug)]
pub(crate) struct MetaView {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) status: NodeStatusResponse,
    /// The gateway's clock when the answer came.
    pub(crate) own_time_ms: u64,
}

/// All nodes that answered, at a first and at a last look.
#[derive(Clone, Debug, Default)]
pub(crate) struct MetaViews {
    pub(crate) first: Vec<MetaView>,
    pub(crate) last: Vec<MetaView>,
}

fn group_of(views: &[MetaView], group: u32) -> impl Iterator<Item = (&MetaView, &GroupStatus)> {
    views.iter().flat_map(move |view| {
        view.status
            .groups
            .iter()
            .filter(move |status| status.group == group)
            .map(move |status| (view, status))
    })
}

/// The leader by the latest term in which anyone knows one.
fn leader(views: &[MetaView], group: u32) -> Option<u64> {
    let known = group_of(views, group).map(|(_view, status)| status).filter(|status| status.leader != 0);
    known.max_by_key(|status| status.term).map(|status| status.leader)
}

impl MetaViews {
    /// A line for each thing that is wrong, with what to do.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut lines = self.replica_problems();
        lines.extend(self.last.iter().filter_map(disk_problem));
        lines.extend(self.last.iter().filter_map(clock_problem));
        lines
    }

    /// The same, of the groups alone.
    pub(crate) fn replica_problems(&self) -> Vec<String> {
        let groups: BTreeSet<u32> =
            self.last.iter().flat_map(|view| &view.status.groups).map(|status| status.group).collect();
        groups.into_iter().flat_map(|group| self.group_problems(group)).collect()
    }

    fn group_problems(&self, group: u32) -> Vec<String> {
        let name =
            if group == 0 { "the root metadata group".to_owned() } else { format!("metadata group {group}") };
        let Some(leader) = leader(&self.last, group) else {
            let cannot = format!("{name} has no leader; start metadata nodes until most of them are up");
            return vec![cannot].into_iter().chain(refusals(&self.last, group, &name)).collect();
        };
        let reached = group_of(&self.first, group)
            .find(|(view, _status)| view.node.0 == leader)
            .map_or(0, |(_view, status)| status.applied_index);
        let mut lines: Vec<String> = refusals(&self.last, group, &name).collect();
        for (view, status) in group_of(&self.last, group) {
            let behind = status.applied_index < reached;
            if !status.refuses.is_empty() || (status.leader == leader && !behind) {
                continue;
            }
            let (node, address) = (view.node, &view.address);
            lines.push(format!(
                "metadata node {node} at {address} is up and does not follow {name}: it has applied {} of {reached}{}; \
                 look at its log and at the network between it and node {leader}",
                status.applied_index,
                if status.leader == leader { "" } else { " and does not know its leader" },
            ));
        }
        lines
    }
}

fn refusals<'a>(views: &'a [MetaView], group: u32, name: &'a str) -> impl Iterator<Item = String> + 'a {
    group_of(views, group).filter(|(_view, status)| !status.refuses.is_empty()).map(move |(view, status)| {
        format!("metadata node {} at {} does not vote in {name}: {}", view.node, view.address, status.refuses)
    })
}

fn disk_problem(view: &MetaView) -> Option<String> {
    let what = match view.status.disk_short {
        0 => return None,
        1 => {
            "at its reserve: as a leader it takes only what makes room (`keepstone rm`, `keepstone trash purge`, `keepstone versions rm`)"
        }
        _ => "all but full: as a leader it takes nothing",
    };
    let MetaView { node, address, status, .. } = view;
    let free_mib = status.disk_free_bytes >> 20;
    Some(format!(
        "the disk of metadata node {node} at {address} is {what}; {free_mib} MiB are free; give it more space"
    ))
}

fn clock_problem(view: &MetaView) -> Option<String> {
    let MetaView { node, address, status, own_time_ms } = view;
    let difference_ms = status.time_ms.abs_diff(*own_time_ms);
    if difference_ms <= CLOCK_DIFFERENCE_MS_MAX || status.time_ms == 0 {
        return None;
    }
    let side = if status.time_ms > *own_time_ms { "ahead of" } else { "behind" };
    let seconds = difference_ms / 1000;
    Some(format!(
        "the clock of metadata node {node} at {address} is {seconds} s {side} the gateway's; set both by NTP"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(node: u64, leader: u64, applied_index: u64) -> MetaView {
        let group = GroupStatus { group: 1, term: 3, leader, applied_index, ..GroupStatus::default() };
        let status = NodeStatusResponse {
            node,
            groups: vec![group],
            time_ms: 1_000_000,
            ..NodeStatusResponse::default()
        };
        MetaView { node: NodeId(node), address: format!("h{node}:1"), status, own_time_ms: 1_000_000 }
    }

    fn problems(first: [MetaView; 3], last: [MetaView; 3]) -> Vec<String> {
        MetaViews { first: first.into(), last: last.into() }.problems()
    }

    #[test]
    fn who_reaches_what_the_leader_had_follows() {
        let first = [view(1, 1, 100), view(2, 1, 90), view(3, 1, 100)];
        let last = [view(1, 1, 500), view(2, 1, 100), view(3, 1, 499)];
        assert_eq!(problems(first, last), Vec::<String>::new());
    }

    #[test]
    fn a_replica_that_is_up_and_does_not_follow_is_told() {
        let first = [view(1, 1, 100), view(2, 1, 90), view(3, 1, 100)];
        let last = [view(1, 1, 100), view(2, 1, 90), view(3, 1, 100)];
        let lines = problems(first, last);
        assert!(
            lines.len() == 1 && lines[0].contains("node 2 at h2:1 is up and does not follow"),
            "{lines:?}"
        );
    }

    #[test]
    fn a_replica_that_is_even_and_knows_no_leader_is_told() {
        let all = || [view(1, 1, 100), view(2, 0, 100), view(3, 1, 100)];
        let lines = problems(all(), all());
        assert!(lines.len() == 1 && lines[0].contains("does not know its leader"), "{lines:?}");
    }

    #[test]
    fn without_a_leader_it_is_said_of_the_group() {
        let all = || [view(1, 0, 100), view(2, 0, 100), view(3, 0, 100)];
        let lines = problems(all(), all());
        assert!(lines.len() == 1 && lines[0].contains("metadata group 1 has no leader"), "{lines:?}");
    }

    #[test]
    fn a_voter_that_refuses_is_told_in_its_own_words_and_once() {
        let mut all = [view(1, 1, 100), view(2, 1, 100), view(3, 1, 40)];
        all[2].status.groups[0].refuses = "its directory is older than it was".to_owned();
        let lines = problems(all.clone(), all);
        assert!(lines.len() == 1 && lines[0].contains("older than it was"), "{lines:?}");
    }

    #[test]
    fn a_short_disk_and_a_wrong_clock_are_told() {
        let mut all = [view(1, 1, 100), view(2, 1, 100), view(3, 1, 100)];
        all[0].status.disk_short = 1;
        all[1].status.time_ms += 172_800_000;
        let lines = problems(all.clone(), all);
        assert!(lines.iter().any(|line| line.contains("at its reserve")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("172800 s ahead of")), "{lines:?}");
        assert_eq!(lines.len(), 2);
    }
}
