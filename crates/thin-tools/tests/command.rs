//! The tools' command lines: where output goes, options given twice, files that are named in errors.
//!
//! A tool runs in a process of its own: this test again, which becomes the tool.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "support/pools.rs"]
mod pools;

use std::fs::File;
use std::io::{PipeReader, Read, pipe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use thinmap_thin_tools::command::{Invocation, NoHost, find};

/// What divides the words of the tool that the process is to become.
const DIVIDER: &str = "\u{1f}";
const WORDS: &str = "THINMAP_TEST_TOOL";

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "becomes_a_tool", "--nocapture"])
        .env(WORDS, words.join(DIVIDER));
    command
}

/// Runs a tool with its output to the named files.
fn run_to(words: &[&str], out: Stdio, err: Stdio) -> Option<i32> {
    // The test's own lines go nowhere; the tool finds its output as descriptor 0.
    let mut command = command(words);
    let mut child = command
        .stdin(out)
        .stdout(Stdio::null())
        .stderr(err)
        .spawn()
        .unwrap();
    child.wait().unwrap().code()
}

/// Starts a tool and reads the beginning of its output.
fn begun(command: &mut Command) -> (Child, PipeReader) {
    let (mut reader, writer) = pipe().unwrap();
    let child = command
        .stdin(Stdio::from(writer))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    reader.read_exact(&mut [0; 100]).unwrap();
    (child, reader)
}

fn run(words: &[&str]) -> Ran {
    let directory = tempfile::tempdir().unwrap();
    let (out, err) = (directory.path().join("out"), directory.path().join("err"));
    let file = |path: &Path| Stdio::from(File::create(path).unwrap());
    let code = run_to(words, file(&out), file(&err));
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    Ran {
        code,
        out: text(&out),
        err: text(&err),
    }
}

#[test]
fn becomes_a_tool() {
    let Ok(words) = std::env::var(WORDS) else {
        return;
    };
    rustix::stdio::dup2_stdout(rustix::stdio::stdin()).unwrap();
    let words: Vec<String> = words.split(DIVIDER).map(str::to_owned).collect();
    let call = Invocation {
        program: &words[0],
        args: &words[1..],
        host: &NoHost,
    };
    std::process::exit((find(&words[0]).unwrap().run)(&call));
}

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        pools::random(&directory.path().join("pool"), 104).unwrap();
        let files = Self { directory };
        files.empty("output");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn word(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn empty(&self, name: &str) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(2048 * 4096).unwrap();
    }
}

fn full() -> Stdio {
    Stdio::from(File::options().write(true).open("/dev/full").unwrap())
}

#[test]
fn output_that_nobody_takes_is_no_panic() {
    let files = Files::new();
    let (pool, output) = (files.word("pool"), files.word("output"));
    let repair = ["thin_repair", "-i", &pool, "-o", &output];
    // Whether standard output is what they are called for.
    let calls: [(&[&str], bool); 12] = [
        (&["thin_check", &pool], false),
        (&["thin_check", "--json", &pool], true),
        (&repair, false),
        (&["thin_repair", "--json", "-i", &pool, "-o", &output], true),
        (&["thin_dump", &pool], true),
        (&["thin_dump", "-r", &pool], true),
        (&["thin_ls", &pool], true),
        (&["thin_rmap", "--region", "0..1000", &pool], true),
        (&["thin_delta", "--thin1", "0", "--thin2", "0", &pool], true),
        (
            &["thin_metadata_size", "-b", "64k", "-s", "1g", "-m", "9"],
            true,
        ),
        (&["thin_trim", "-V"], true),
        (&["thin_check", "-qV"], true),
    ];
    for (words, is_result) in calls {
        let errors = files.path("errors");
        let file = Stdio::from(File::create(&errors).unwrap());
        let code = run_to(words, full(), file);
        let told = std::fs::read_to_string(&errors).unwrap();
        assert_eq!(code, Some(i32::from(is_result)), "{words:?}: {told}");
        assert!(told.contains("standard output"), "{words:?}: {told}");
        assert!(!told.contains("panicked"), "{words:?}: {told}");
        // A reader that went away.
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let file = Stdio::from(File::create(&errors).unwrap());
        let code = run_to(words, writer.into(), file);
        let told = std::fs::read_to_string(&errors).unwrap();
        assert_eq!(code, Some(0), "{words:?}: {told}");
        assert!(!told.contains("panicked") && !told.contains("standard output"));
        assert_eq!(run_to(words, Stdio::null(), full()), Some(0), "{words:?}");
    }
    // What is wrong cannot be told, and stays wrong.
    assert_eq!(
        run_to(&["thin_check", "/nonexistent"], full(), full()),
        Some(1)
    );
}

#[test]
fn the_last_of_several_values_counts_and_a_second_device_is_refused() {
    let files = Files::new();
    let (pool, output) = (files.word("pool"), files.word("output"));
    let repair = [
        "thin_repair",
        "-i",
        "/nonexistent",
        "-i",
        &pool,
        "-o",
        "/x",
        "-o",
        &output,
    ];
    assert_eq!(run(&repair).code, Some(0));
    assert_eq!(run(&["thin_check", "-q", "-q", &pool]).code, Some(0));
    assert_eq!(run(&["thin_check", "-qq", &pool]).code, Some(0));
    let human = run(&["thin_dump", "-f", "xml", "-f", "human_readable", &pool]);
    assert!(human.out.starts_with("begin superblock"), "{}", human.out);
    let both = [
        "thin_dump",
        "--skip-mappings",
        "--dev-id",
        "0",
        "--dev-id",
        "0",
        &pool,
    ];
    assert_eq!(run(&both).out.matches("<device").count(), 1);
    assert_eq!(run(&["thin_check", &pool, &pool]).code, Some(1));
    let size = [
        "thin_metadata_size",
        "-b",
        "64k",
        "-b",
        "128k",
        "-s",
        "1g",
        "-m",
        "9",
    ];
    assert_eq!(run(&size).code, Some(1));
}

#[test]
fn a_version_is_printed_behind_other_letters_and_for_a_beginning_of_the_word() {
    for words in [
        &["thin_check", "-V"][..],
        &["thin_check", "-qV"],
        &["thin_check", "--vers"],
        &["thin_delta", "--version", "extra"],
    ] {
        let ran = run(words);
        assert_eq!(ran.code, Some(0), "{words:?}: {}", ran.err);
        assert!(ran.out.starts_with("0.9.0"), "{words:?}: {}", ran.out);
    }
    for words in [
        &["thin_delta", "--ver", "x"][..],
        &["thin_check", "--", "-V"],
        &["thin_dump", "-oV"],
    ] {
        assert_eq!(run(words).code, Some(1), "{words:?}");
    }
}

#[test]
fn a_long_output_to_a_reader_that_goes_away_ends_quietly() {
    let files = Files::new();
    let pool = files.word("pool");
    let (child, reader) = begun(&mut command(&["thin_dump", &pool]));
    drop(reader);
    let ended = child.wait_with_output();
    let ended = ended.unwrap();
    assert_eq!(
        (ended.status.code(), &ended.stderr[..]),
        (Some(0), &b""[..])
    );
}

#[test]
fn an_output_that_is_the_input_is_refused_and_both_are_named() {
    let files = Files::new();
    let (pool, text) = (files.word("pool"), files.word("text"));
    let link = files.word("link");
    std::fs::hard_link(&pool, &link).unwrap();
    std::fs::copy(&pool, files.path("before")).unwrap();
    let repair = ["thin_repair", "-i", &pool, "-o", &link];
    for words in [
        &["thin_dump", "-o", &link, &pool][..],
        &["thin_dump", "-r", "-o", &link, &pool],
        &["thin_restore", "-i", &pool, "-o", &link],
        &["thin_trim", "--metadata-dev", &pool, "--data-dev", &link],
        &repair,
    ] {
        let ran = run(words);
        assert_eq!(ran.code, Some(1), "{words:?}");
        assert!(
            ran.err.contains(&pool) && ran.err.contains(&link),
            "{}",
            ran.err
        );
        let same = std::fs::read(&pool).unwrap() == std::fs::read(files.path("before")).unwrap();
        assert!(same, "{words:?}");
    }
    assert_eq!(run(&["thin_dump", "-o", &text, &pool]).code, Some(0));
    assert_eq!(
        run(&["thin_restore", "-i", &text, "-o", &pool]).code,
        Some(0)
    );
}

#[test]
fn errors_name_the_file_at_fault() {
    let files = Files::new();
    let (pool, output, text) = (files.word("pool"), files.word("output"), files.word("text"));
    assert_eq!(run(&["thin_dump", "-o", &text, &pool]).code, Some(0));
    let magic = format!("{output}: ");
    for words in [
        &["thin_dump", &output][..],
        &["thin_ls", &output],
        &["thin_rmap", "--region", "0..1", &output],
        &["thin_delta", "--thin1", "0", "--thin2", "1", &output],
        &["thin_trim", "--metadata-dev", &output, "--data-dev", &pool],
    ] {
        let ran = run(words);
        assert_eq!(ran.code, Some(1), "{words:?}");
        assert!(
            ran.err.contains(&magic) && ran.err.contains("magic"),
            "{}",
            ran.err
        );
    }
    let small = files.word("small");
    File::create(&small).unwrap().set_len(4 * 4096).unwrap();
    for words in [
        ["thin_repair", "-i", &pool, "-o", &small],
        ["thin_restore", "-i", &text, "-o", &small],
    ] {
        let ran = run(&words);
        assert_eq!(ran.code, Some(1), "{words:?}");
        assert!(ran.err.contains(&format!("{small}: ")), "{}", ran.err);
        assert!(!ran.err.contains(&text), "{}", ran.err);
    }
    let directory = files.directory.path().to_str().unwrap();
    let ran = run(&["thin_restore", "-i", directory, "-o", &output]);
    assert!(
        ran.err.contains("Is a directory") && !ran.err.contains("XML"),
        "{}",
        ran.err
    );
    let twice = std::fs::read_to_string(&text).unwrap();
    let device = "<device dev_id=\"0\" mapped_blocks=\"0\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\"/>";
    let lines = twice.lines().count();
    let twice = twice.replace("</superblock>", &format!("{device}\n</superblock>"));
    std::fs::write(&text, twice).unwrap();
    let ran = run(&["thin_restore", "-i", &text, "-o", &output]);
    let wanted = format!("{text}: line {lines}: volume 0 is there twice");
    assert!(ran.err.contains(&wanted), "{}: {wanted}", ran.err);
}

#[test]
fn a_check_advises_a_repair_of_damage_alone() {
    let files = Files::new();
    let (pool, output) = (files.word("pool"), files.word("output"));
    // A file that never was a pool's metadata.
    let ran = run(&["thin_check", &output]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains("is this the right device"), "{}", ran.out);
    // No metadata snapshot is held.
    let ran = run(&["thin_check", "-m", &pool]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("holds no metadata snapshot"),
        "{}",
        ran.err
    );
    assert!(!(ran.out + &ran.err).contains("repair"));
}

#[test]
fn numbers_and_lists_end_where_they_end() {
    let files = Files::new();
    let (pool, output) = (files.word("pool"), files.word("output"));
    for words in [
        &["thin_rmap", "--region", "0..5x", &pool][..],
        &["thin_dump", "--dev-id", "1x", &pool],
        &["thin_dump", "--dev-id", "-1", &pool],
        &["thin_ls", "-o", "DEV,", &pool],
        &[
            "thin_repair",
            "-i",
            &pool,
            "-o",
            &output,
            "--data-block-size",
            "0",
        ],
    ] {
        assert_eq!(run(words).code, Some(1), "{words:?}");
    }
}

#[test]
fn a_repaired_copy_has_no_name_that_could_stay() {
    let files = Files::new();
    let pool = files.word("pool");
    let copies = tempfile::tempdir().unwrap();
    let mut dump = command(&["thin_dump", "-r", &pool]);
    let (child, reader) = begun(dump.env("TMPDIR", copies.path()));
    assert_eq!(std::fs::read_dir(copies.path()).unwrap().count(), 0);
    drop(reader);
    assert!(child.wait_with_output().unwrap().status.success());
}

/// lvm2 gives `thin_repair` an empty word where its configuration has no options.
#[test]
fn an_empty_word_is_no_argument_of_repair() {
    let dir = tempfile::tempdir().expect("directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (from, to) = (path("from"), path("to"));
    for (name, bytes) in [(&from, 4 << 20), (&to, 4 << 20)] {
        let file = std::fs::File::create(name).expect("file");
        file.set_len(bytes).expect("size");
    }
    let refused = run(&["thin_repair", "x", "-i", &from, "-o", &to]);
    assert!(refused.err.contains("by -i and -o"), "{}", refused.err);
    let tried = run(&["thin_repair", "", "-i", &from, "-o", &to]);
    assert!(
        tried.err.contains("from"),
        "it looks at the input: {}",
        tried.err
    );
}
