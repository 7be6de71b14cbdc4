//! What must be read before a part of a row can be written or given to a reader. Pure.

use super::blocks::is_recoverable;
use super::geometry::{Role, Row};

/// A set of members.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct MemberSet([u64; WORDS]);

const WORDS: usize = 4;

/// More members than a set holds do not make an array (the kernel's limit is 253).
pub(super) const MEMBERS_MAX: usize = 64 * WORDS;

impl MemberSet {
    /// Those for which the function says yes.
    pub(super) fn of(members: usize, is_in: impl Fn(usize) -> bool) -> Self {
        let mut set = Self::default();
        (0..members)
            .filter(|member| is_in(*member))
            .for_each(|member| set.insert(member));
        set
    }

    pub(super) fn insert(&mut self, member: usize) {
        self.0[member / 64] |= 1 << (member % 64);
    }

    pub(super) fn remove(&mut self, member: usize) {
        self.0[member / 64] &= !(1 << (member % 64));
    }

    pub(super) fn contains(&self, member: usize) -> bool {
        self.0[member / 64] >> (member % 64) & 1 == 1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(super) fn is_subset(&self, of: &Self) -> bool {
        self.without(of).is_empty()
    }

    pub(super) fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let set = *self;
        (0..MEMBERS_MAX).filter(move |member| set.contains(*member))
    }
}

/// What is to be done with one part of a row, and what the members are good for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Task {
    /// Members in the array.
    pub(super) members: usize,
    /// Hold what they should, as far as is known.
    pub(super) readable: MemberSet,
    /// Take writes.
    pub(super) writable: MemberSet,
    /// Their content is in memory.
    pub(super) have: MemberSet,
    /// Failed to be read although they should hold it: to be written anew.
    pub(super) unread: MemberSet,
    /// Data that are asked for.
    pub(super) wanted: MemberSet,
    /// Data that are overwritten in part.
    pub(super) partly: MemberSet,
    /// Data that are overwritten from begin to end.
    pub(super) wholly: MemberSet,
    /// Parity is known to fit the data.
    pub(super) is_consistent: bool,
}

/// How the new parity is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// From the old parity and the change of what is written.
    Modify,
    /// From all data, none of which is missing.
    Reconstruct,
    /// From all data, after those that are missing were found.
    Recover,
}

/// The way, and whose content it needs in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) way: Way,
    pub(super) needs: MemberSet,
}

impl Task {
    /// The plan that reads least; `None` when too much is lost.
    pub(super) fn plan(&self, row: &Row) -> Option<Plan> {
        let recover = self.recover(row);
        // What failed to be read is cured if it can be.
        if !self.unread.is_empty() && recover.is_some() {
            return recover;
        }
        let (modify, reconstruct) = (self.modify(row), self.reconstruct(row));
        let reads = |plan: &Plan| plan.needs.without(&self.have).len();
        let is_less = |a: &Plan, b: &Plan| reads(a) < reads(b);
        match (modify, reconstruct) {
            // Parity that does not fit must not be changed by a difference.
            (Some(modify), Some(reconstruct))
                if is_less(&modify, &reconstruct) && (self.is_consistent || !self.is_writing()) =>
            {
                Some(modify)
            }
            (_, Some(reconstruct)) => Some(reconstruct),
            (Some(modify), None) => Some(modify),
            (None, None) => recover,
        }
    }

    /// Whether anything is to be written.
    pub(super) fn is_writing(&self) -> bool {
        !self.written().is_empty()
    }

    /// Whether a member held what it should when this began, even if it could not be read.
    pub(super) fn is_intact(&self, member: usize) -> bool {
        self.readable.contains(member) || self.unread.contains(member)
    }

    fn written(&self) -> MemberSet {
        self.partly.and(&self.wholly)
    }

    fn parities(&self, row: &Row) -> MemberSet {
        MemberSet::of(self.members, |member| {
            !matches!(row.role(member), Role::Data(_))
        })
    }

    fn data(&self, row: &Row) -> MemberSet {
        MemberSet::of(self.members, |member| {
            matches!(row.role(member), Role::Data(_))
        })
    }

    /// The parities that a write changes.
    pub(super) fn parities_written(&self, row: &Row) -> MemberSet {
        if self.written().is_empty() {
            return MemberSet::default();
        }
        let parities = self.parities(row);
        parities.without(&parities.without(&self.writable))
    }

    fn modify(&self, row: &Row) -> Option<Plan> {
        let parities = self.parities_written(row);
        let old = if parities.is_empty() {
            self.partly
        } else {
            self.written()
        };
        let needs = old.and(&parities).and(&self.wanted);
        self.if_known(Way::Modify, needs)
    }

    fn reconstruct(&self, row: &Row) -> Option<Plan> {
        let needs = self.data(row).without(&self.wholly).and(&self.wanted);
        self.if_known(Way::Reconstruct, needs)
    }

    fn if_known(&self, way: Way, needs: MemberSet) -> Option<Plan> {
        let known = self.readable.and(&self.have);
        needs.is_subset(&known).then_some(Plan { way, needs })
    }

    /// All data that there are, and as many parities as data are missing.
    pub(super) fn recover(&self, row: &Row) -> Option<Plan> {
        let known = self.readable.and(&self.have);
        let data = self.data(row);
        let missing = data.without(&known);
        if !is_recoverable(row, |member| known.contains(member), self.members) {
            return None;
        }
        let mut needs = data.without(&missing);
        let parities = [Some(row.p), row.q].into_iter().flatten();
        for parity in parities
            .filter(|parity| known.contains(*parity))
            .take(missing.len())
        {
            needs.insert(parity);
        }
        Some(Plan {
            way: Way::Recover,
            needs,
        })
    }
}

#[cfg(test)]
mod tests {
    use thinmap_units::Sector;

    use super::super::geometry::{Algorithm, Geometry};
    use super::*;

    fn set(members: &[usize]) -> MemberSet {
        let mut set = MemberSet::default();
        members.iter().for_each(|member| set.insert(*member));
        set
    }

    /// Row "0 1 2 3 P" or "0 1 2 3 P Q".
    fn row(parities: usize) -> (Row, Task) {
        let members = 4 + parities;
        let geometry = Geometry::new(members, parities, Algorithm::ParityN, Sector(8));
        let all = MemberSet::of(members, |_| true);
        let task = Task {
            members,
            readable: all,
            writable: all,
            is_consistent: true,
            ..Task::default()
        };
        (geometry.expect("possible").row(Sector(0)), task)
    }

    fn plan(way: Way, needs: &[usize]) -> Option<Plan> {
        let needs = set(needs);
        Some(Plan { way, needs })
    }

    #[test]
    fn a_write_reads_what_is_less() {
        let (row, task) = row(1);
        let one = Task {
            wholly: set(&[1]),
            ..task
        };
        assert_eq!(one.plan(&row), plan(Way::Modify, &[1, 4]));
        let three = Task {
            wholly: set(&[0, 1, 2]),
            ..task
        };
        assert_eq!(three.plan(&row), plan(Way::Reconstruct, &[3]));
        let all = Task {
            wholly: set(&[0, 1, 2, 3]),
            ..task
        };
        assert_eq!(all.plan(&row), plan(Way::Reconstruct, &[]));
        let in_part = Task {
            partly: set(&[0]),
            wholly: set(&[1, 2, 3]),
            ..task
        };
        assert_eq!(in_part.plan(&row), plan(Way::Reconstruct, &[0]));
        let unfit = Task {
            is_consistent: false,
            ..one
        };
        assert_eq!(unfit.plan(&row), plan(Way::Reconstruct, &[0, 2, 3]));
    }

    #[test]
    fn what_failed_is_written_around() {
        let (row, task) = row(1);
        let without = |lost: usize| {
            let left = MemberSet::of(5, |member| member != lost);
            Task {
                readable: left,
                writable: left,
                ..task
            }
        };
        // The failed one is not concerned, is written wholly, in part; is the parity.
        let other = Task {
            wholly: set(&[1]),
            ..without(0)
        };
        assert_eq!(other.plan(&row), plan(Way::Modify, &[1, 4]));
        let whole = Task {
            wholly: set(&[0]),
            ..without(0)
        };
        assert_eq!(whole.plan(&row), plan(Way::Reconstruct, &[1, 2, 3]));
        let part = Task {
            partly: set(&[0]),
            ..without(0)
        };
        assert_eq!(part.plan(&row), plan(Way::Recover, &[1, 2, 3, 4]));
        let parity = Task {
            wholly: set(&[1]),
            ..without(4)
        };
        assert_eq!(parity.plan(&row), plan(Way::Modify, &[]));
        let read = Task {
            wanted: set(&[0]),
            ..without(0)
        };
        assert_eq!(read.plan(&row), plan(Way::Recover, &[1, 2, 3, 4]));
        // A parity that is being rebuilt gets the parity of all data.
        let rebuilt = Task {
            wholly: set(&[1]),
            writable: task.writable,
            ..without(4)
        };
        assert_eq!(rebuilt.plan(&row), plan(Way::Reconstruct, &[0, 2, 3]));
    }

    #[test]
    fn two_may_be_missing_where_there_are_two_parities() {
        let (row, task) = row(2);
        let left = MemberSet::of(6, |member| member != 0 && member != 2);
        let read = Task {
            readable: left,
            writable: left,
            wanted: set(&[0]),
            ..task
        };
        assert_eq!(read.plan(&row), plan(Way::Recover, &[1, 3, 4, 5]));
        let mut three = read;
        three.readable.remove(4);
        assert_eq!(three.plan(&row), None);
        // Without P it is Q that finds one.
        let one = Task {
            readable: MemberSet::of(6, |m| m != 0 && m != 4),
            ..read
        };
        assert_eq!(one.plan(&row), plan(Way::Recover, &[1, 2, 3, 5]));
    }

    #[test]
    fn a_failed_read_is_cured() {
        let (row, mut task) = row(1);
        task.readable.remove(2);
        let task = Task {
            unread: set(&[2]),
            wholly: set(&[1]),
            ..task
        };
        assert_eq!(task.plan(&row), plan(Way::Recover, &[0, 1, 3, 4]));
        // Where parity may not fit as well: what was written since then is in it.
        let unfit = Task {
            is_consistent: false,
            ..task
        };
        assert_eq!(unfit.plan(&row), plan(Way::Recover, &[0, 1, 3, 4]));
    }
}
