//! Command lines that nobody would write: any words and any characters, never a panic, always an exit code.
//!
//! Commands that wait, read standard input, run programs or speak to udev are left out; their words are parsed by the same
//! tables as those of the others.

use super::fake::Bench;

const COMMANDS: &[&str] = &[
    "info",
    "ls",
    "status",
    "table",
    "deps",
    "targets",
    "version",
    "splitname",
    "mangle",
    "rename",
    "message",
    "remove",
    "suspend",
    "resume",
    "clear",
    "setgeometry",
    "mknodes",
    "help",
    "nonsense",
    "",
];
const SWITCHES: &[&str] = &[
    "-c",
    "-o",
    "-S",
    "--sort",
    "-O",
    "--separator",
    "--noheadings",
    "--nameprefixes",
    "--rows",
    "--unquoted",
    "--tree",
    "--target",
    "-u",
    "-j",
    "-m",
    "--major",
    "--minor",
    "-v",
    "--verbose",
    "-f",
    "--force",
    "--retry",
    "--deferred",
    "--inactive",
    "--manglename",
    "--concise",
    "--showkeys",
    "--noflush",
    "--nolockfs",
    "--setuuid",
    "-U",
    "-G",
    "-M",
    "--readahead",
    "--addnodeoncreate",
    "-h",
    "--",
    "-",
    "---",
    "-ccc",
    "--col",
    "--s",
];
const FIELDS: &[&str] = &[
    "name",
    "uuid",
    "major",
    "minor",
    "open",
    "segments",
    "events",
    "attr",
    "blkdevname",
    "all",
    "help",
    "+name",
    "-name",
    "name,uuid",
    "name=vol",
    "name=~v.*",
    "open>0 && (name=vol || uuid!=\"\")",
    "name!~[",
    "{a,b}",
    "ascii,compact",
    "vg_name",
    "#name",
    "((((",
    "\"",
    "'",
    "\\",
    "\u{e4}",
    "=",
    "\u{0}",
];

/// Numbers from a seed, the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % count as u64).unwrap()
    }

    fn word(&mut self) -> String {
        match self.below(5) {
            0 => SWITCHES[self.below(SWITCHES.len())].to_owned(),
            1 => FIELDS[self.below(FIELDS.len())].to_owned(),
            2 => format!(
                "{}{}",
                FIELDS[self.below(FIELDS.len())],
                FIELDS[self.below(FIELDS.len())]
            ),
            3 => self.garbage(),
            _ => {
                ["vol", "pool", "0", "18446744073709551616", "-1", "0x7"][self.below(6)].to_owned()
            }
        }
    }

    fn garbage(&mut self) -> String {
        let chars: Vec<char> = "-=,.:/ \t\n\"'\\()[]{}!~<>&|*%$#@0az\u{e4}\u{1f600}"
            .chars()
            .collect();
        let len = self.below(12);
        (0..len).map(|_| chars[self.below(chars.len())]).collect()
    }
}

#[test]
fn any_words_give_an_exit_code() {
    let bench = Bench::new();
    for name in ["vol", "pool"] {
        bench.ok(&["create", name, "--table", "0 8 zero"]);
    }
    for seed in 1..4000 {
        let mut numbers = Numbers(seed * 0x9e37_79b9);
        let mut words = vec![COMMANDS[numbers.below(COMMANDS.len())].to_owned()];
        for _ in 0..numbers.below(6) {
            let at = numbers.below(words.len() + 1);
            words.insert(at, numbers.word());
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let outcome = bench.run(&words);
        assert!((0..=1).contains(&outcome.code), "{words:?}: {outcome:?}");
    }
}
