//! Where md's levels 4, 5 and 6 put data and parity.
//!
//! Chunks of the array are dealt out in rows: one chunk on each member, of which one (P) or two (P and Q) hold parity. The
//! algorithm says which, row by row. Pure arithmetic, no state.

use thinmap_units::Sector;

/// How rows are laid out, with md's number: it stands in superblocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Algorithm {
    /// Parity moves from the last member to the first, data in order of members. raid5_la.
    LeftAsymmetric = 0,
    /// Parity moves from the first member to the last, data in order of members. raid5_ra.
    RightAsymmetric = 1,
    /// As left asymmetric, data begin behind the parity. raid5_ls.
    LeftSymmetric = 2,
    /// As right asymmetric, data begin behind the parity. raid5_rs.
    RightSymmetric = 3,
    /// Parity first. raid4.
    Parity0 = 4,
    /// Parity last. raid5_n, raid6_n_6.
    ParityN = 5,
    /// As in DDF, RAID 6 rotating zero restart. raid6_zr.
    ZeroRestart = 8,
    /// As in DDF, RAID 6 rotating N restart. raid6_nr.
    NRestart = 9,
    /// As in DDF, RAID 6 rotating N continue. raid6_nc.
    NContinue = 10,
    /// As raid5_la with Q on one member more. raid6_la_6.
    LeftAsymmetric6 = 16,
    /// As raid5_ra with Q on one member more. raid6_ra_6.
    RightAsymmetric6 = 17,
    /// As raid5_ls with Q on one member more. raid6_ls_6.
    LeftSymmetric6 = 18,
    /// As raid5_rs with Q on one member more. raid6_rs_6.
    RightSymmetric6 = 19,
    /// As raid4 with Q on one member more.
    Parity06 = 20,
}

impl Algorithm {
    /// The algorithm of md's number.
    pub(crate) fn from_md(number: u32) -> Option<Self> {
        ALGORITHMS.into_iter().find(|a| *a as u32 == number)
    }

    /// Whether it lays out rows with that many parities.
    pub(crate) fn is_for(self, parities: usize) -> bool {
        match self {
            Self::LeftAsymmetric
            | Self::RightAsymmetric
            | Self::LeftSymmetric
            | Self::RightSymmetric
            | Self::Parity0
            | Self::ParityN => parities == 1 || parities == 2,
            Self::ZeroRestart
            | Self::NRestart
            | Self::NContinue
            | Self::LeftAsymmetric6
            | Self::RightAsymmetric6
            | Self::LeftSymmetric6
            | Self::RightSymmetric6
            | Self::Parity06 => parities == 2,
        }
    }

    /// Whether Q counts members as DDF does: each by its own number, parities as zeroes.
    fn is_ddf(self) -> bool {
        matches!(self, Self::ZeroRestart | Self::NRestart | Self::NContinue)
    }
}

const ALGORITHMS: [Algorithm; 14] = [
    Algorithm::LeftAsymmetric,
    Algorithm::RightAsymmetric,
    Algorithm::LeftSymmetric,
    Algorithm::RightSymmetric,
    Algorithm::Parity0,
    Algorithm::ParityN,
    Algorithm::ZeroRestart,
    Algorithm::NRestart,
    Algorithm::NContinue,
    Algorithm::LeftAsymmetric6,
    Algorithm::RightAsymmetric6,
    Algorithm::LeftSymmetric6,
    Algorithm::RightSymmetric6,
    Algorithm::Parity06,
];

/// The shape of an array.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    members: usize,
    parities: usize,
    algorithm: Algorithm,
    chunk: Sector,
}

/// What a member holds in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// The data chunk of this number in the row.
    Data(usize),
    /// The exclusive or of all data.
    P,
    /// The sum of all data, each times a power of two, in GF(2^8).
    Q,
}

/// Where a sector of the array lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// The member.
    pub(crate) member: usize,
    /// Sector in the member's data area.
    pub(crate) sector: Sector,
    /// Number of the data chunk in its row.
    pub(crate) data: usize,
}

/// One row: which member holds what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    /// Members in the array.
    members: usize,
    /// The member with P.
    pub(crate) p: usize,
    /// The member with Q.
    pub(crate) q: Option<usize>,
    order: Order,
    is_ddf: bool,
}

/// How the data chunks of a row follow one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// By member, parities left out.
    Members,
    /// From this member on, in a circle of so many members.
    From(usize, usize),
}

impl Geometry {
    /// The geometry, when the algorithm lays out rows with so many parities and there are more members than parities.
    pub(crate) fn new(
        members: usize,
        parities: usize,
        algorithm: Algorithm,
        chunk: Sector,
    ) -> Option<Self> {
        let is_possible = algorithm.is_for(parities) && members > parities && chunk > Sector::ZERO;
        is_possible.then_some(Self {
            members,
            parities,
            algorithm,
            chunk,
        })
    }

    /// Members in the array.
    pub(crate) fn members(&self) -> usize {
        self.members
    }

    /// Members that hold parity in each row: as many may fail.
    #[cfg(test)]
    pub(crate) fn parities(&self) -> usize {
        self.parities
    }

    /// Data chunks in a row.
    pub(crate) fn data_chunks(&self) -> usize {
        self.members - self.parities
    }

    /// Sectors that a chunk has on one member.
    pub(crate) fn chunk(&self) -> Sector {
        self.chunk
    }

    /// Sectors of the array in one row.
    pub(crate) fn row_sectors(&self) -> Sector {
        Sector(self.chunk.raw() * self.data_chunks() as u64)
    }

    /// Where a sector of the array lies.
    pub(crate) fn place(&self, sector: Sector) -> Place {
        let (chunk, into) = (
            sector.raw() / self.chunk.raw(),
            sector.raw() % self.chunk.raw(),
        );
        let width = self.data_chunks() as u64;
        let (row, data) = (chunk / width, (chunk % width) as usize);
        Place {
            member: self.row_number(row).member_of(data),
            sector: Sector(row * self.chunk.raw() + into),
            data,
        }
    }

    /// The row that a sector of a member's data area is in.
    pub(crate) fn row(&self, on_member: Sector) -> Row {
        self.row_number(on_member.raw() / self.chunk.raw())
    }

    /// The array's sector that lies there; `None` for parity.
    #[cfg(test)]
    pub(crate) fn sector_at(&self, member: usize, on_member: Sector) -> Option<Sector> {
        let Role::Data(data) = self.row(on_member).role(member) else {
            return None;
        };
        let (row, into) = (
            on_member.raw() / self.chunk.raw(),
            on_member.raw() % self.chunk.raw(),
        );
        let chunk = row * self.data_chunks() as u64 + data as u64;
        Some(Sector(chunk * self.chunk.raw() + into))
    }

    fn row_number(&self, row: u64) -> Row {
        use Algorithm as A;
        let n = self.members;
        // The remainder is below the count of members, which is in memory.
        let turn = |circle: usize, number: u64| (number % circle as u64) as usize;
        let rights = |circle: usize| turn(circle, row);
        let lefts = |circle: usize| circle - 1 - turn(circle, row);
        // The circle that P moves in; Q of the "_6" algorithms stands outside of it.
        let inner = n - 1;
        let (p, q, order) = match self.algorithm {
            A::LeftAsymmetric => (lefts(n), self.behind(lefts(n)), Order::Members),
            A::RightAsymmetric | A::ZeroRestart => {
                (rights(n), self.behind(rights(n)), Order::Members)
            }
            A::LeftSymmetric => self.symmetric(lefts(n)),
            A::RightSymmetric => self.symmetric(rights(n)),
            A::Parity0 => (0, self.behind(0), Order::Members),
            A::ParityN => {
                let p = self.data_chunks();
                (p, self.behind(p), Order::Members)
            }
            A::NRestart => {
                let p = n - 1 - turn(n, row.wrapping_add(1));
                (p, Some((p + 1) % n), Order::Members)
            }
            A::NContinue => {
                let p = lefts(n);
                (p, Some((p + n - 1) % n), Order::From((p + 1) % n, n))
            }
            A::LeftAsymmetric6 => (lefts(inner), Some(inner), Order::Members),
            A::RightAsymmetric6 => (rights(inner), Some(inner), Order::Members),
            A::LeftSymmetric6 => {
                let p = lefts(inner);
                (p, Some(inner), Order::From((p + 1) % inner, inner))
            }
            A::RightSymmetric6 => {
                let p = rights(inner);
                (p, Some(inner), Order::From((p + 1) % inner, inner))
            }
            A::Parity06 => (0, Some(inner), Order::Members),
        };
        Row {
            members: n,
            p,
            q,
            order,
            is_ddf: self.algorithm.is_ddf(),
        }
    }

    /// Q behind P, around the end, where there is a Q.
    fn behind(&self, p: usize) -> Option<usize> {
        (self.parities == 2).then_some((p + 1) % self.members)
    }

    fn symmetric(&self, p: usize) -> (usize, Option<usize>, Order) {
        let first = (p + self.parities) % self.members;
        (p, self.behind(p), Order::From(first, self.members))
    }
}

impl Row {
    fn is_parity(&self, member: usize) -> bool {
        member == self.p || Some(member) == self.q
    }

    /// The member with the data chunk of this number.
    pub(crate) fn member_of(&self, data: usize) -> usize {
        match self.order {
            Order::From(first, circle) => (first + data) % circle,
            Order::Members => {
                let mut members = (0..self.members).filter(|member| !self.is_parity(*member));
                // Asked for data chunks that there are.
                members.nth(data).unwrap_or(self.members - 1)
            }
        }
    }

    /// What a member holds.
    pub(crate) fn role(&self, member: usize) -> Role {
        if member == self.p {
            return Role::P;
        }
        if Some(member) == self.q {
            return Role::Q;
        }
        match self.order {
            Order::From(first, circle) => Role::Data((member + circle - first) % circle),
            Order::Members => {
                let before = (0..member).filter(|member| !self.is_parity(*member));
                Role::Data(before.count())
            }
        }
    }

    /// Which power of two a data member is multiplied by in Q.
    ///
    /// md counts data members from the one behind Q on, in a circle; DDF takes each member's own number.
    pub(crate) fn power(&self, member: usize) -> usize {
        if self.is_ddf {
            return member;
        }
        let first = self.q.map_or(0, |q| (q + 1) % self.members);
        let distance = (member + self.members - first) % self.members;
        let between = (0..distance).map(|step| (first + step) % self.members);
        between.filter(|member| !self.is_parity(*member)).count()
    }

    /// Powers in use are below this.
    #[cfg(test)]
    pub(crate) fn powers(&self) -> usize {
        if self.is_ddf {
            self.members
        } else {
            self.members - 1 - usize::from(self.q.is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every geometry with up to nine members.
    pub(crate) fn all() -> impl Iterator<Item = Geometry> {
        let shapes = (1..=2).flat_map(|parities| (2..=9).map(move |members| (parities, members)));
        shapes.flat_map(|(parities, members)| {
            ALGORITHMS
                .into_iter()
                .filter_map(move |a| Geometry::new(members, parities, a, Sector(16)))
        })
    }

    /// The letters of the first rows, as manuals draw them: data by number, parity as P and Q.
    fn picture(parities: usize, members: usize, algorithm: Algorithm, rows: u64) -> Vec<String> {
        let geometry = Geometry::new(members, parities, algorithm, Sector(8)).expect("possible");
        let cell = |row: u64, member: usize| match geometry.row(Sector(row * 8)).role(member) {
            Role::Data(data) => data.to_string(),
            Role::P => "P".to_owned(),
            Role::Q => "Q".to_owned(),
        };
        (0..rows)
            .map(|row| (0..members).map(|member| cell(row, member)).collect())
            .collect()
    }

    #[test]
    fn rows_look_as_the_algorithms_names_say() {
        use Algorithm as A;
        let cases: [(usize, A, &[&str]); 14] = [
            (1, A::LeftAsymmetric, &["012P", "01P2", "0P12", "P012"]),
            (1, A::RightAsymmetric, &["P012", "0P12", "01P2", "012P"]),
            (1, A::LeftSymmetric, &["012P", "12P0", "2P01", "P012"]),
            (1, A::RightSymmetric, &["P012", "2P01", "12P0", "012P"]),
            (1, A::Parity0, &["P012", "P012"]),
            (1, A::ParityN, &["012P", "012P"]),
            (
                2,
                A::ZeroRestart,
                &["PQ012", "0PQ12", "01PQ2", "012PQ", "Q012P"],
            ),
            (
                2,
                A::NRestart,
                &["012PQ", "01PQ2", "0PQ12", "PQ012", "Q012P"],
            ),
            (
                2,
                A::NContinue,
                &["012QP", "12QP0", "2QP01", "QP012", "P012Q"],
            ),
            (2, A::LeftAsymmetric6, &["012PQ", "01P2Q", "0P12Q", "P012Q"]),
            (
                2,
                A::RightAsymmetric6,
                &["P012Q", "0P12Q", "01P2Q", "012PQ"],
            ),
            (2, A::LeftSymmetric6, &["012PQ", "12P0Q", "2P01Q", "P012Q"]),
            (2, A::RightSymmetric6, &["P012Q", "2P01Q", "12P0Q", "012PQ"]),
            (2, A::ParityN, &["012PQ", "012PQ"]),
        ];
        for (parities, algorithm, rows) in cases {
            let found = picture(parities, 3 + parities, algorithm, rows.len() as u64);
            assert_eq!(found, rows, "{algorithm:?}");
        }
    }

    #[test]
    fn every_sector_has_one_place_and_every_place_one_sector() {
        for geometry in all() {
            let rows = 3 * geometry.members() as u64;
            let chunk = geometry.chunk().raw();
            let mut found = std::collections::HashSet::new();
            for sector in 0..rows * geometry.row_sectors().raw() {
                let place = geometry.place(Sector(sector));
                assert!(place.member < geometry.members() && place.sector.raw() < rows * chunk);
                assert!(found.insert((place.member, place.sector.raw())));
                let row = geometry.row(place.sector);
                assert_eq!(row.role(place.member), Role::Data(place.data));
                assert_eq!(row.member_of(place.data), place.member);
                let back = geometry.sector_at(place.member, place.sector);
                assert_eq!(back, Some(Sector(sector)), "{geometry:?}");
            }
        }
    }

    #[test]
    fn powers_in_a_row_are_distinct_and_in_bounds() {
        for geometry in all() {
            for row in 0..2 * geometry.members() as u64 {
                let row = geometry.row(Sector(row * geometry.chunk().raw()));
                let data = (0..geometry.members()).filter(|m| !row.is_parity(*m));
                let mut powers: Vec<usize> = data.map(|m| row.power(m)).collect();
                assert_eq!(powers.len(), geometry.data_chunks());
                powers.sort_unstable();
                powers.dedup();
                assert_eq!(powers.len(), geometry.data_chunks(), "{geometry:?}");
                assert!(powers.iter().all(|power| *power < row.powers()));
            }
        }
    }

    #[test]
    fn only_what_md_knows_is_a_geometry() {
        for (parities, members, algorithm) in [
            (1, 5, Algorithm::ZeroRestart),
            (2, 5, Algorithm::LeftAsymmetric),
            (1, 1, Algorithm::ParityN),
            (2, 2, Algorithm::ParityN),
            (3, 8, Algorithm::ParityN),
        ] {
            let is_possible = Geometry::new(members, parities, algorithm, Sector(8)).is_some();
            assert_eq!(is_possible, algorithm == Algorithm::LeftAsymmetric);
        }
        assert_eq!(Algorithm::from_md(18), Some(Algorithm::LeftSymmetric6));
        assert_eq!(Algorithm::from_md(7), None);
    }
}
