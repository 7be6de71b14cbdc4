//! The blocks of one row, or of the same part of all its chunks: making parity, finding what is lost.

use super::galois::{
    Term, add_multiple, inverse, inverse_power, multiply, multiply_block, parity_p, parity_pq,
    power, xor,
};
use super::geometry::{Role, Row};

/// One buffer per member, `None` where its content is not known.
pub(crate) type Blocks<B> = Vec<Option<B>>;

/// Members whose content is not known, and that cannot be found either.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("too much of a stripe is lost")]
pub(crate) struct Lost;

/// Computes P, and Q where there is one, from all data. What the parity's buffers held is overwritten; a parity without a
/// buffer is not computed.
///
/// Every data block must be known.
pub(crate) fn make_parity<B: AsRef<[u8]> + AsMut<[u8]>>(row: &Row, blocks: &mut Blocks<B>) {
    let mut p = blocks[row.p].take();
    let mut q = row.q.and_then(|q| blocks[q].take());
    let terms = terms(row, blocks);
    match (p.as_mut(), q.as_mut()) {
        (Some(p), Some(q)) => parity_pq(&terms, p.as_mut(), q.as_mut()),
        (Some(p), None) => parity_p(&terms, p.as_mut()),
        (None, Some(q)) => {
            let q = q.as_mut();
            q.fill(0);
            for term in &terms {
                add_multiple(q, power(term.power), term.data);
            }
        }
        (None, None) => {}
    }
    blocks[row.p] = p;
    if let Some(at) = row.q {
        blocks[at] = q;
    }
}

/// Takes the change of one data block (`change` is old ^ new) into the parities whose buffers are there.
pub(crate) fn update_parity<B: AsMut<[u8]>>(
    row: &Row,
    blocks: &mut Blocks<B>,
    member: usize,
    change: &[u8],
) {
    if let Some(p) = blocks[row.p].as_mut() {
        xor(p.as_mut(), change);
    }
    if let Some(q) = row.q.and_then(|q| blocks[q].as_mut()) {
        add_multiple(q.as_mut(), power(row.power(member)), change);
    }
}

/// Finds the data blocks that are not known, one or two, from the parities that are. `fresh` makes a buffer.
///
/// Parity that is not known stays so: [`make_parity`] makes it afterwards.
pub(crate) fn recover_data<B: AsRef<[u8]> + AsMut<[u8]>>(
    row: &Row,
    blocks: &mut Blocks<B>,
    mut fresh: impl FnMut() -> B,
) -> Result<(), Lost> {
    let is_lost_data =
        |member: &usize| matches!(row.role(*member), Role::Data(_)) && blocks[*member].is_none();
    let lost: Vec<usize> = (0..blocks.len()).filter(is_lost_data).collect();
    let has_p = blocks[row.p].is_some();
    let q = row.q.filter(|q| blocks[*q].is_some());
    match (lost.as_slice(), has_p, q) {
        ([], _, _) => {}
        ([lost], true, _) => {
            let mut found = fresh();
            parity_p(&terms(row, blocks), found.as_mut());
            add(&mut found, &blocks[row.p]);
            blocks[*lost] = Some(found);
        }
        ([lost], false, Some(q)) => {
            let (mut p_part, mut found) = (fresh(), fresh());
            parity_pq(&terms(row, blocks), p_part.as_mut(), found.as_mut());
            add(&mut found, &blocks[q]);
            multiply_block(found.as_mut(), inverse_power(row.power(*lost)));
            blocks[*lost] = Some(found);
        }
        ([x, y], true, Some(q)) => {
            // With px = P ^ (P without x and y), qx = the same of Q:
            // Dx = (g^y px ^ qx) / (g^x ^ g^y), Dy = px ^ Dx.
            let (mut px, mut qx) = (fresh(), fresh());
            parity_pq(&terms(row, blocks), px.as_mut(), qx.as_mut());
            add(&mut px, &blocks[row.p]);
            add(&mut qx, &blocks[q]);
            let (gx, gy) = (power(row.power(*x)), power(row.power(*y)));
            let share = inverse(gx ^ gy);
            multiply_block(qx.as_mut(), share);
            add_multiple(qx.as_mut(), multiply(gy, share), px.as_ref());
            xor(px.as_mut(), qx.as_ref());
            blocks[*x] = Some(qx);
            blocks[*y] = Some(px);
        }
        _ => return Err(Lost),
    }
    Ok(())
}

/// Whether so much is known that [`recover_data`] finds the rest.
pub(crate) fn is_recoverable(row: &Row, is_known: impl Fn(usize) -> bool, members: usize) -> bool {
    let parities = usize::from(is_known(row.p)) + usize::from(row.q.is_some_and(&is_known));
    let is_lost = |member: &usize| matches!(row.role(*member), Role::Data(_)) && !is_known(*member);
    (0..members).filter(is_lost).count() <= parities
}

/// The data that is known, highest power first.
fn terms<'a, B: AsRef<[u8]>>(row: &Row, blocks: &'a Blocks<B>) -> Vec<Term<'a>> {
    let term = |(member, block): (usize, &'a Option<B>)| {
        let is_data = matches!(row.role(member), Role::Data(_));
        let data = block.as_ref().filter(|_| is_data)?.as_ref();
        Some(Term {
            power: row.power(member),
            data,
        })
    };
    let mut terms: Vec<_> = blocks.iter().enumerate().filter_map(term).collect();
    terms.sort_unstable_by_key(|term| std::cmp::Reverse(term.power));
    terms
}

fn add<B: AsRef<[u8]> + AsMut<[u8]>>(into: &mut B, from: &Option<B>) {
    if let Some(from) = from {
        xor(into.as_mut(), from.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use thinmap_units::Sector;

    use super::super::geometry::{Algorithm, Geometry};
    use super::*;

    const BYTES: usize = 512;

    fn filled(row: &Row, members: usize, rng: &mut SmallRng) -> Blocks<Vec<u8>> {
        let mut block = || {
            let mut block = vec![0; BYTES];
            rng.fill(&mut block[..]);
            Some(block)
        };
        let mut blocks: Blocks<Vec<u8>> = (0..members).map(|_| block()).collect();
        make_parity(row, &mut blocks);
        blocks
    }

    fn geometries() -> impl Iterator<Item = Geometry> {
        let shapes = (1..=2).flat_map(|parities| [3, 4, 5, 8, 17].map(|n| (n, parities)));
        shapes.flat_map(|(n, parities)| {
            (0..32).filter_map(move |number| {
                let algorithm = Algorithm::from_md(number)?;
                Geometry::new(n, parities, algorithm, Sector(8))
            })
        })
    }

    #[test]
    fn whatever_two_members_are_lost_they_are_found_again() {
        let mut rng = SmallRng::seed_from_u64(1);
        for geometry in geometries() {
            let n = geometry.members();
            for row_number in 0..n as u64 {
                let row = geometry.row(Sector(row_number * 8));
                let whole = filled(&row, n, &mut rng);
                for (a, b) in (0..n).flat_map(|a| (a..n).map(move |b| (a, b))) {
                    let mut blocks = whole.clone();
                    blocks[a] = None;
                    blocks[b] = None;
                    let lost = 1 + usize::from(a != b);
                    let known = |m: usize| blocks[m].is_some();
                    let expected = is_recoverable(&row, known, n);
                    assert!(expected || lost > geometry.parities());
                    let found = recover_data(&row, &mut blocks, || vec![0; BYTES]);
                    assert_eq!(found.is_ok(), expected);
                    if found.is_ok() {
                        for parity in [Some(row.p), row.q].into_iter().flatten() {
                            blocks[parity].get_or_insert_with(|| vec![7; BYTES]);
                        }
                        make_parity(&row, &mut blocks);
                        assert!(
                            blocks == whole,
                            "{geometry:?} row {row_number} lost {a} {b}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_change_taken_in_is_parity_made_anew() {
        let mut rng = SmallRng::seed_from_u64(2);
        for geometry in geometries() {
            let n = geometry.members();
            let row = geometry.row(Sector(8 * rng.random_range(0..100)));
            let mut blocks = filled(&row, n, &mut rng);
            let member = row.member_of(rng.random_range(0..geometry.data_chunks()));
            let mut change = vec![0; BYTES];
            rng.fill(&mut change[..]);
            update_parity(&row, &mut blocks, member, &change);
            xor(blocks[member].as_mut().expect("filled"), &change);
            let updated = blocks.clone();
            make_parity(&row, &mut blocks);
            assert!(blocks == updated, "{geometry:?}");
        }
    }

    #[test]
    fn q_alone_is_the_q_of_both() {
        let geometry = Geometry::new(6, 2, Algorithm::ZeroRestart, Sector(8)).expect("possible");
        let row = geometry.row(Sector(16));
        let whole = filled(&row, 6, &mut SmallRng::seed_from_u64(3));
        let mut blocks = whole.clone();
        blocks[row.p] = None;
        blocks[row.q.expect("RAID 6")] = Some(vec![9; BYTES]);
        make_parity(&row, &mut blocks);
        assert!(blocks[row.q.expect("RAID 6")] == whole[row.q.expect("RAID 6")]);
    }
}
