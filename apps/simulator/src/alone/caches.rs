//! Lines of targets that keep something beside the data: cache, writecache, integrity.

use rand::Rng;
use rand::rngs::SmallRng;
use thinmap_persistent_data::{BlockKind, seal};
use thinmap_sim::{Medium, SECTOR};

use super::plan::{BLOCK, Plan, pick};

impl Plan {
    pub(super) fn cache(&mut self, rng: &mut SmallRng) {
        self.layout.origin = self.len();
        self.origin_on = Some(2);
        let block = pick(rng, &[64, 128]);
        let blocks = rng.random_range(1..12);
        self.disks = vec![2048, blocks * block, self.len()];
        let format = pick(rng, &["", "metadata2 "]);
        let mut lines = Vec::new();
        for _ in 0..3 {
            let mode = pick(rng, &["", "writeback ", "writethrough "]);
            let count = usize::from(!format.is_empty()) + usize::from(!mode.is_empty());
            let policy = match pick(rng, &[0, 64, 128, 2048, 100_000, 1, 2]) {
                1 => "cleaner 0".to_owned(),
                2 => "smq 0".to_owned(),
                threshold => format!("smq 2 migration_threshold {threshold}"),
            };
            lines.push(format!(
                "7:0 7:1 7:2 {block} {count} {format}{mode}{policy}"
            ));
        }
        self.take_lines("cache", lines);
        self.victim = rng.random_range(0..3);
    }

    pub(super) fn writecache(&mut self, rng: &mut SmallRng) {
        let grain = self.draw_grain(rng);
        self.layout.origin = self.len();
        self.origin_on = Some(0);
        let blocks = rng.random_range(4..100);
        // Superblock, entries of 16 bytes, blocks.
        let cache = 8 + (blocks * 16_u64).div_ceil(512) + 8 + blocks * grain;
        self.disks = vec![self.len(), cache];
        let mut lines = Vec::new();
        for _ in 0..3 {
            let mut options: Vec<String> = Vec::new();
            if rng.random() {
                let low = rng.random_range(0..60);
                let high = rng.random_range(low..=100);
                options.push(format!("high_watermark {high} low_watermark {low}"));
            }
            for (option, values) in [
                ("writeback_jobs", [1, 4, 64]),
                ("autocommit_blocks", [1, 8, 1000]),
                ("autocommit_time", [5, 100, 1000]),
                ("max_age", [50, 1000, 100_000]),
                ("pause_writeback", [0, 50, 3000]),
            ] {
                if rng.random_range(0..4) == 0 {
                    options.push(format!("{option} {}", pick(rng, &values)));
                }
            }
            if rng.random_range(0..8) == 0 {
                options.push("cleaner".to_owned());
            }
            let options = options.join(" ");
            let count = options.split_ascii_whitespace().count();
            let block = grain * SECTOR as u64;
            lines.push(format!("s 7:0 7:1 {block} {count} {options}"));
        }
        self.take_lines("writecache", lines);
        self.victim = rng.random_range(0..2);
    }

    pub(super) fn integrity(&mut self, rng: &mut SmallRng) {
        let grain = self.draw_grain(rng);
        let mode = pick(rng, &["J", "J", "B", "B", "D"]);
        let hash = pick(rng, &["crc32c", "sha256", "xxhash64"]);
        let block = grain * SECTOR as u64;
        let mut options = vec![
            format!("internal_hash:{hash}"),
            format!("block_size:{block}"),
            "recalculate".to_owned(),
        ];
        let journal = pick(rng, &[64, 256, 1024]);
        options.push(format!("journal_sectors:{journal}"));
        if rng.random() {
            self.disks = vec![self.len(), 4096 + self.len()];
            options.push("meta_device:7:1".to_owned());
        } else {
            self.disks = vec![2 * self.len() + 4096];
            let interleave = pick(rng, &[512, 1024, 4096]);
            options.push(format!("interleave_sectors:{interleave}"));
        }
        for (option, values) in [
            ("buffer_sectors", [8, 16, 128]),
            ("journal_watermark", [5, 50, 90]),
            ("commit_time", [1, 50, 1000]),
            ("sectors_per_bit", [1024, 2048, 32_768]),
            ("bitmap_flush_interval", [1, 50, 1000]),
        ] {
            let in_mode = match option {
                "sectors_per_bit" | "bitmap_flush_interval" => mode == "B",
                "journal_watermark" => mode == "J",
                _ => true,
            };
            if in_mode && rng.random() {
                options.push(format!("{option}:{}", pick(rng, &values)));
            }
        }
        let line = format!("7:0 0 - {mode} {} {}", options.len(), options.join(" "));
        self.line = ("integrity", line);
        self.victim = rng.random_range(0..self.disks.len());
        // As in a kernel a block that was under way when the power was cut, or whose write failed in part, may have the wrong tag.
        self.may_lack_tags = mode != "J";
        self.is_direct = mode == "D";
    }

    /// One of these, or others in its place.
    fn take_lines(&mut self, target: &'static str, mut lines: Vec<String>) {
        self.others = lines.split_off(1);
        self.line = (target, lines.remove(0));
    }

    /// Requests are multiples of so many sectors.
    fn draw_grain(&mut self, rng: &mut SmallRng) -> u64 {
        let grain = pick(rng, &[1, 8]);
        self.layout.grain = grain;
        self.layout.block = BLOCK * grain;
        self.blocks = self.blocks.div_ceil(grain.min(2));
        grain
    }

    /// What an administrator does whose line is refused, as its metadata are marked: `cache_check --clear-needs-check-flag`.
    pub fn clear_needs_check(&self, media: &mut [Medium]) {
        if self.line.0 != "cache" {
            return;
        }
        let mut block = [0; 4096];
        media[0].read(0, &mut block);
        if block[FLAGS] & NEEDS_CHECK == 0 {
            return;
        }
        block[FLAGS] &= !NEEDS_CHECK;
        seal(BlockKind::CacheSuperblock, 0, &mut block);
        media[0].write(0, &block);
    }
}

/// The lowest byte of the superblock's flags.
const FLAGS: usize = 4;
const NEEDS_CHECK: u8 = 2;
