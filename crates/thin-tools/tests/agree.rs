//! Debian's thin-provisioning-tools 0.9 and ours say the same of generated pools, and each reads what the other
//! writes.
//!
//! A handful of pools by default; all 50, among them one with 10 million mappings and one with 10,000 snapshots,
//! with `THINMAP_POOLS=all` (`make soak` does).

#[path = "support/pools.rs"]
mod pools;
#[path = "support/theirs.rs"]
mod theirs;

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use theirs::{run, same_files};
use thinmap_thin_tools::delta::{Side, SimpleXml, VerboseXml, delta};
use thinmap_thin_tools::dump::{DumpOptions, Format, Human, Overrides, Xml, dump};
use thinmap_thin_tools::ls::{Field, ls, table};
use thinmap_thin_tools::restore::{Event, XmlReader, restore};
use thinmap_thin_tools::rmap::{self, Found, rmap};
use thinmap_thin_tools::{Access, Image, RootChoice, Run, Source};

/// Random pools in a full run; with the two large ones there are 50.
const RANDOM_POOLS: u64 = 48;
/// Random pools in a short one.
const RANDOM_POOLS_FEW: u64 = 4;

fn all_pools() -> bool {
    std::env::var("THINMAP_POOLS").is_ok_and(|value| value == "all")
}

/// A pool's image, and room for texts beside it.
struct Pool {
    directory: tempfile::TempDir,
    image: PathBuf,
}

impl Pool {
    fn new(make: impl FnOnce(&Path) -> thinmap_thin_metadata::Result<()>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let image = directory.path().join("pool.img");
        make(&image).expect("a pool");
        Self { directory, image }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self, choice: RootChoice) -> Source {
        Source::open(&self.image, choice).expect("a good pool")
    }

    /// `["thin_x", ..]` on the image.
    fn theirs(&self, words: &[&str]) -> String {
        let mut words = words.to_vec();
        words.push(self.image.to_str().expect("a path"));
        run(&words)
    }
}

fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).expect("text")
}

fn dump_to<F: Format>(source: &Source, options: &DumpOptions, format: &F, path: &Path) {
    let mut out = BufWriter::new(File::create(path).expect("a file"));
    dump(source, options, format, &mut out).expect("dump");
    out.flush().expect("written");
}

fn dumps_agree(pool: &Pool, choice: RootChoice, snap: &[&str]) {
    let (ours, theirs) = (pool.file("ours"), pool.file("theirs"));
    let source = pool.source(choice);
    let options = DumpOptions::default();
    let compare = |words: &[&str]| {
        let mut words = words.to_vec();
        words.extend_from_slice(snap);
        words.extend(["-o", theirs.to_str().expect("a path")]);
        pool.theirs(&words);
        same_files(&ours, &theirs, &words);
    };
    dump_to(&source, &options, &Xml, &ours);
    compare(&["thin_dump"]);
    dump_to(&source, &options, &Human, &ours);
    compare(&["thin_dump", "-f", "human_readable"]);
    let skip = DumpOptions {
        skip_mappings: true,
        ..DumpOptions::default()
    };
    dump_to(&source, &skip, &Xml, &ours);
    compare(&["thin_dump", "--skip-mappings"]);
    let ids = volumes(&source);
    let one = DumpOptions {
        dev_ids: vec![ids[ids.len() / 2]],
        ..DumpOptions::default()
    };
    dump_to(&source, &one, &Xml, &ours);
    compare(&["thin_dump", "--dev-id", &one.dev_ids[0].to_string()]);
}

fn volumes(source: &Source) -> Vec<u64> {
    let volumes = source.volumes().expect("volumes");
    volumes.iter().map(|volume| volume.id).collect()
}

fn lists_agree(pool: &Pool, choice: RootChoice, snap: &[&str]) {
    let source = pool.source(choice);
    let fields: Vec<Field> = Field::names().filter_map(Field::find).collect();
    let names: Vec<&str> = Field::names().collect();
    let uses = ls(&source, true, true).expect("ls");
    let block_sectors = u64::from(source.superblock().data_block_size);
    let all = names.join(",");
    for headers in [true, false] {
        let mut words = vec!["thin_ls", "-o", &all];
        words.extend((!headers).then_some("--no-headers"));
        words.extend_from_slice(snap);
        let ours = table(&uses, &fields, headers, block_sectors);
        assert_eq!(ours, pool.theirs(&words), "{words:?}");
    }
}

fn deltas_agree(pool: &Pool, choice: RootChoice, snap: &[&str]) {
    let source = pool.source(choice);
    let ids = volumes(&source);
    let last = ids.len() - 1;
    for (left, right) in [(0, last), (last, 0), (last / 2, last / 3), (last, last)] {
        let (left, right) = (ids[left], ids[right]);
        let (thin1, thin2) = (left.to_string(), right.to_string());
        let mut words = vec!["thin_delta", "--thin1", &thin1, "--thin2", &thin2];
        words.extend_from_slice(snap);
        let (left, right) = (Side::Thin(left), Side::Thin(right));
        let ours = text(|out| {
            delta(&source, left, right, &mut SimpleXml::default(), out).expect("delta");
        });
        assert!(ours == pool.theirs(&words), "{words:?}");
        words.push("--verbose");
        let ours = text(|out| {
            delta(&source, left, right, &mut VerboseXml::default(), out).expect("delta");
        });
        assert!(ours == pool.theirs(&words), "{words:?}");
    }
}

fn reverse_maps_agree(pool: &Pool) {
    let source = pool.source(RootChoice::Live);
    for (regions, words) in regions_of(&source) {
        let found = rmap(&source, &regions, true).expect("rmap");
        // COMPAT: thin_rmap 0.9 tells of a node that several volumes share for the first of them only. So
        // the whole truth is taken from thin_dump, and thin_rmap must tell a part of it.
        assert!(flat(&found) == dumped(pool, &regions), "{words:?}");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for line in pool.theirs(&words).lines() {
            let theirs = parse_line(line);
            let within = |ours: &Found| {
                let shift = theirs.run.data.wrapping_sub(ours.run.data);
                ours.dev == theirs.dev
                    && ours.run.data <= theirs.run.data
                    && theirs.run.data + theirs.run.len <= ours.run.data + ours.run.len
                    && ours.run.thin + shift == theirs.run.thin
            };
            // Sorted by data block: whatever holds the line begins at or before it.
            let end = found.partition_point(|ours| ours.run.data <= theirs.run.data);
            assert!(found[..end].iter().rev().any(within), "{line}");
        }
    }
}

/// On a pool whose volumes share no nodes, line by line.
fn reverse_maps_are_the_same(image: &Path) {
    let source = Source::open(image, RootChoice::Live).expect("a good pool");
    for (regions, words) in regions_of(&source) {
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.push(image.to_str().expect("a path"));
        let found = rmap(&source, &regions, true).expect("rmap");
        let ours = text(|out| rmap::print(&found, out).expect("print"));
        // Where two lines begin at one data block, the order of theirs is anybody's guess.
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert!(sorted(&ours) == sorted(&run(&words)), "{words:?}");
    }
}

/// Regions to ask for, and thin_rmap's words for them.
#[expect(
    clippy::single_range_in_vec_init,
    reason = "one region is a list of regions too"
)]
fn regions_of(source: &Source) -> Vec<(Vec<Range<u64>>, Vec<String>)> {
    let blocks = source.superblock().data_space_map.nr_blocks;
    let all = [
        vec![0..blocks],
        vec![
            10..11,
            11..40,
            blocks / 3..blocks / 2,
            blocks / 2 + 7..blocks * 4,
        ],
        vec![blocks - 1..blocks],
    ];
    let with_words = |regions: Vec<Range<u64>>| {
        let mut words = vec!["thin_rmap".to_owned()];
        for region in &regions {
            words.push("--region".to_owned());
            words.push(format!("{}..{}", region.start, region.end));
        }
        (regions, words)
    };
    all.into_iter().map(with_words).collect()
}

/// Data block, volume, block of the volume, length; in order.
fn flat(found: &[Found]) -> Vec<(u64, u64, u64, u64)> {
    let mut flat: Vec<_> = found
        .iter()
        .map(|f| (f.run.data, f.dev, f.run.thin, f.run.len))
        .collect();
    flat.sort_unstable();
    flat
}

/// What thin_dump says of some regions, in the form of [`flat`].
fn dumped(pool: &Pool, regions: &[Range<u64>]) -> Vec<(u64, u64, u64, u64)> {
    let xml = pool.file("dumped");
    pool.theirs(&["thin_dump", "-o", xml.to_str().expect("a path")]);
    let mut input = BufReader::new(File::open(&xml).expect("xml"));
    let mut reader = XmlReader::new(&mut input);
    let mut found: Vec<(u64, u64, u64, u64)> = Vec::new();
    let mut dev = 0;
    while let Some(event) = reader.next().expect("good XML") {
        let run = match event {
            Event::Device(volume) => {
                dev = volume.id;
                continue;
            }
            Event::Run(run) => run,
            _ => continue,
        };
        for region in regions {
            let (from, to) = (
                region.start.max(run.data),
                region.end.min(run.data + run.len),
            );
            if from >= to {
                continue;
            }
            let thin = run.thin + (from - run.data);
            match found.last_mut() {
                Some((data, last, at, len))
                    if *last == dev && *data + *len == from && *at + *len == thin =>
                {
                    *len += to - from;
                }
                _ => found.push((from, dev, thin, to - from)),
            }
        }
    }
    found.sort_unstable();
    found
}

/// A line of thin_rmap.
fn parse_line(line: &str) -> Found {
    let numbers: Vec<u64> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect();
    let [data, data_end, dev, thin, _] = numbers[..] else {
        panic!("{line}");
    };
    Found {
        dev,
        run: Run {
            thin,
            data,
            len: data_end - data,
            time: 0,
        },
    }
}

/// Our XML through their restore, theirs through ours; both pass thin_check and dump as before.
fn round_trips(pool: &Pool) {
    let (xml, again, restored) = (pool.file("xml"), pool.file("again"), pool.file("restored"));
    let size = std::fs::metadata(&pool.image).expect("size").len();
    let source = pool.source(RootChoice::Live);
    dump_to(&source, &DumpOptions::default(), &Xml, &xml);
    let (xml_word, restored_word) = (
        xml.to_str().expect("path"),
        restored.to_str().expect("path"),
    );
    let empty = || {
        let file = File::create(&restored).expect("a file");
        // Their trees are half empty where ours are full; shared nodes are written once for each volume.
        file.set_len(size.max(64 << 20) * 2).expect("room");
    };

    empty();
    run(&["thin_restore", "-q", "-i", xml_word, "-o", restored_word]);
    let source = Source::open(&restored, RootChoice::Live).expect("theirs");
    dump_to(&source, &DumpOptions::default(), &Xml, &again);
    same_files(&xml, &again, &["our dump of their restore"]);
    drop(source);
    reverse_maps_are_the_same(&restored);

    empty();
    let image = Image::open(&restored, Access::Write).expect("image");
    let mut input = BufReader::new(File::open(&xml).expect("xml"));
    restore(&mut input, None, &image, &Overrides::default(), true).expect("restore");
    drop(image);
    run(&["thin_check", "-q", restored_word]);
    let again_word = again.to_str().expect("path");
    run(&["thin_dump", "-o", again_word, restored_word]);
    same_files(&xml, &again, &["their dump of our restore"]);
}

fn all_agree(pool: &Pool) {
    pool.theirs(&["thin_check", "-q"]);
    dumps_agree(pool, RootChoice::Live, &[]);
    lists_agree(pool, RootChoice::Live, &[]);
    deltas_agree(pool, RootChoice::Live, &[]);
    reverse_maps_agree(pool);
    round_trips(pool);
    if pool.source(RootChoice::Live).superblock().held_root != 0 {
        let choice = RootChoice::MetadataSnap(None);
        dumps_agree(pool, choice, &["-m"]);
        lists_agree(pool, choice, &["-m"]);
        deltas_agree(pool, choice, &["-m"]);
    }
}

#[test]
fn tools_agree_on_random_pools() {
    let pools = if all_pools() {
        RANDOM_POOLS
    } else {
        RANDOM_POOLS_FEW
    };
    for seed in 0..pools {
        eprintln!("seed {seed}");
        all_agree(&Pool::new(|path| pools::random(path, seed)));
    }
    eprintln!("{pools} pools agree");
}

#[test]
fn tools_agree_on_a_pool_of_many_mappings() {
    let mappings = if all_pools() { 10_000_000 } else { 50_000 };
    all_agree(&Pool::new(|path| pools::many_mappings(path, mappings, 10)));
}

#[test]
fn tools_agree_on_a_pool_of_many_snapshots() {
    // thin_dump writes what is shared once for each volume, which bounds the size of the origin.
    let (mappings, snapshots) = if all_pools() {
        (2000, 10_000)
    } else {
        (2000, 100)
    };
    all_agree(&Pool::new(|path| {
        pools::many_snapshots(path, mappings, snapshots)
    }));
}
