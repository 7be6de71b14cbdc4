//! `set_region_mappings`.
//!
//! COMPAT: what comes before a word that is wrong has been done.

use super::regions::Regions;

/// Obeys the words after `set_region_mappings`; the error is the reason.
pub(super) fn set_region_mappings(
    regions: &Regions,
    paths: u32,
    words: &[String],
) -> Result<(), String> {
    let mut region = 0_u64;
    for word in words {
        let wrong = || format!("invalid set_region_mappings argument: '{word}'");
        match word.strip_prefix(['R', 'r']) {
            Some(repeat) => {
                let (cycle, count) = parse_repeat(repeat).ok_or_else(wrong)?;
                region = copy_on(regions, region, cycle, count)?;
            }
            None => {
                let (number, path) = word.split_once(':').ok_or_else(wrong)?;
                region = match number {
                    "" => region.wrapping_add(1),
                    number => hexadecimal(number).ok_or_else(wrong)?,
                };
                let path = hexadecimal(path)
                    .filter(|_| !path.is_empty())
                    .ok_or_else(wrong)?;
                set(regions, paths, region, path)?;
            }
        }
    }
    Ok(())
}

fn set(regions: &Regions, paths: u32, region: u64, path: u64) -> Result<(), String> {
    let count = regions.count();
    if region >= count {
        let reason = format!("invalid set_region_mappings region number: {region} >= {count}");
        return Err(reason);
    }
    match u32::try_from(path) {
        Ok(path) if path < paths => {
            regions.set(region, path);
            Ok(())
        }
        _ => Err(format!(
            "invalid set_region_mappings device: {path} >= {paths}"
        )),
    }
}

/// Gives the next `count` regions the paths of those `cycle` before them; the last region that was set.
fn copy_on(regions: &Regions, region: u64, cycle: u64, count: u64) -> Result<u64, String> {
    if cycle == 0 || cycle - 1 > region {
        let cycle = cycle.wrapping_sub(1);
        let reason = format!("invalid set_region_mappings cycle length: {cycle} > {region}");
        return Err(reason);
    }
    let all = regions.count();
    let last = region
        .checked_add(count)
        .filter(|last| *last < all)
        .ok_or_else(|| {
            format!("invalid set_region_mappings region number: {region} + {count} >= {all}")
        })?;
    for region in region + 1..=last {
        regions.set(region, regions.path(region - cycle));
    }
    Ok(last)
}

/// `<cycle>,<count>`.
fn parse_repeat(words: &str) -> Option<(u64, u64)> {
    let (cycle, count) = words.split_once(',')?;
    if cycle.is_empty() || count.is_empty() {
        return None;
    }
    Some((hexadecimal(cycle)?, hexadecimal(count)?))
}

/// A row of hexadecimal digits; an empty one is 0. COMPAT: of more than 16 the last ones count.
fn hexadecimal(word: &str) -> Option<u64> {
    word.chars().try_fold(0_u64, |number, digit| {
        let digit = digit.to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(words: &str) -> (Result<(), String>, Vec<u32>) {
        let regions = Regions::in_turn(8, 3).expect("room");
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let end = set_region_mappings(&regions, 3, &words);
        (end, (0..8).map(|region| regions.path(region)).collect())
    }

    #[test]
    fn regions_are_named_counted_on_and_repeated() {
        let ok = |words| {
            let (end, paths) = after(words);
            end.expect(words);
            paths
        };
        assert_eq!(ok("0:2 :2 :1"), [2, 2, 1, 0, 1, 2, 0, 1]);
        assert_eq!(ok("0:2 :1 R2,6"), [2, 1, 2, 1, 2, 1, 2, 1]);
        assert_eq!(ok("5:0 r1,2 2:2"), [0, 1, 2, 0, 1, 0, 0, 0]);
        assert_eq!(ok("0000000000000000007:2"), [0, 1, 2, 0, 1, 2, 0, 2]);
        assert_eq!(ok("R1,0"), [0, 1, 2, 0, 1, 2, 0, 1]);
    }

    #[test]
    fn what_is_wrong_is_told_and_what_came_before_was_done() {
        for (words, reason) in [
            ("0:1 x", "argument: 'x'"),
            ("0:1 1:", "argument: '1:'"),
            ("0:1 g:1", "argument: 'g:1'"),
            ("0:1 1:1x", "argument: '1:1x'"),
            ("0:1 R", "argument: 'R'"),
            ("0:1 R,1", "argument: 'R,1'"),
            ("0:1 R1", "argument: 'R1'"),
            ("0:1 R1,", "argument: 'R1,'"),
            ("0:1 R0,1", "cycle length: 18446744073709551615 > 0"),
            ("0:1 R2,1", "cycle length: 1 > 0"),
            ("0:1 R1,8", "region number: 0 + 8 >= 8"),
            ("0:1 8:1", "region number: 8 >= 8"),
            ("0:1 7:3", "device: 3 >= 3"),
        ] {
            let (end, paths) = after(words);
            let text = format!("invalid set_region_mappings {reason}");
            assert_eq!(end, Err(text), "{words}");
            assert_eq!(paths, [1, 1, 2, 0, 1, 2, 0, 1], "{words}");
        }
    }
}
