//! Style as tests: the layering, file sizes, where unsafe code may stand, and that every target has
//! its page, its row and its case.
//!
//! A rule here fails with the file and what to do; an exemption is an entry in a list with a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each crate may use of the others in [dependencies]. Arrows point down only.
const MAY_USE: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("runtime", &["units"]),
    ("block", &["runtime", "units"]),
    ("persistent-data", &["units"]),
    ("thin-metadata", &["persistent-data", "units"]),
    ("thin-tools", &["persistent-data", "thin-metadata", "units"]),
    // Knows no concrete target.
    ("dm", &["block", "runtime", "units"]),
    (
        "targets",
        &[
            "block",
            "dm",
            "persistent-data",
            "runtime",
            "thin-metadata",
            "units",
        ],
    ),
    // Serve any block device; know nothing of device mapper.
    ("exports", &["block", "runtime", "units"]),
    ("control", &["units"]),
    ("interpose", &["control", "units"]),
    ("supervise", &["interpose"]),
    (
        "daemon",
        &[
            "block", "control", "dm", "exports", "runtime", "targets", "units",
        ],
    ),
    // What the fuzz targets do; nothing that is shipped uses it.
    (
        "fuzzing",
        &[
            "block",
            "control",
            "daemon",
            "dm",
            "exports",
            "persistent-data",
            "runtime",
            "sim",
            "targets",
            "thin-metadata",
            "thin-tools",
            "units",
        ],
    ),
    ("shim", &["interpose"]),
    // Runs the daemon, and looks at what it leaves.
    (
        "simulator",
        &[
            "block",
            "control",
            "daemon",
            "dm",
            "persistent-data",
            "runtime",
            "sim",
            "targets",
            "thin-metadata",
            "units",
        ],
    ),
    ("sim", &["block", "persistent-data", "runtime", "units"]),
    (
        "thinmap",
        &[
            "block",
            "control",
            "daemon",
            "exports",
            "interpose",
            "runtime",
            "supervise",
            "thin-tools",
            "units",
        ],
    ),
    // The package that sees everything.
    ("tests", &["block", "dm", "runtime", "targets", "units"]),
];

/// Crates that may hold unsafe code: system interfaces that no safe crate covers.
const MAY_BE_UNSAFE: &[&str] = &["runtime", "exports", "interpose", "shim", "supervise"];

/// Lines in a file, tests and comments included.
const FILE_LINES_MAX: usize = 1000;

/// Files that are one long list and nothing else.
const LONG_LISTS: &[&str] = &[];

#[test]
fn tidy_dependencies_point_down() {
    let mut seen = BTreeSet::new();
    for (name, manifest) in manifests() {
        let Some((_, allowed)) = MAY_USE.iter().find(|(n, _)| *n == name) else {
            panic!("{name} is not in MAY_USE: say where it stands in the layers");
        };
        seen.insert(name.clone());
        for used in workspace_dependencies(&manifest) {
            assert!(
                allowed.contains(&used.as_str()),
                "{name} must not use {used} (in its [dependencies])"
            );
        }
    }
    for (name, _) in MAY_USE {
        assert!(
            seen.contains(*name),
            "{name} is in MAY_USE but there is no such crate"
        );
    }
}

#[test]
fn tidy_layers_have_no_loop() {
    let layers: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut placed = BTreeSet::new();
    while placed.len() < layers.len() {
        let next: Vec<&str> = layers
            .iter()
            .filter(|(name, uses)| {
                !placed.contains(*name) && uses.iter().all(|u| placed.contains(u))
            })
            .map(|(name, _)| *name)
            .collect();
        assert!(
            !next.is_empty(),
            "a loop among the crates outside {placed:?}"
        );
        placed.extend(next);
    }
}

#[test]
fn tidy_files_are_short() {
    for file in rust_files() {
        let lines = read(&file).lines().count();
        let listed = LONG_LISTS.iter().any(|list| file.ends_with(list));
        assert!(
            listed || lines <= FILE_LINES_MAX,
            "{}: {lines} lines: split it",
            file.display()
        );
    }
}

#[test]
fn tidy_files_say_what_they_are_for() {
    for file in rust_files() {
        let text = read(&file);
        let first = text
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        assert!(
            first.starts_with("//!") && first.trim().len() > 5,
            "{}: begin with a //! line that says what it owns",
            file.display()
        );
    }
}

#[test]
fn tidy_unsafe_code_stays_where_it_may() {
    for (name, manifest) in manifests() {
        if MAY_BE_UNSAFE.contains(&name.as_str()) {
            continue;
        }
        let source = manifest.with_file_name("src");
        for file in rust_files().into_iter().filter(|f| f.starts_with(&source)) {
            let code = code_without_remarks(&read(&file));
            let found = code.lines().find(|l| {
                l.split(|c: char| !c.is_alphanumeric() && c != '_')
                    .any(|w| w == "unsafe")
            });
            assert!(
                found.is_none(),
                "{}: unsafe code: {found:?}",
                file.display()
            );
        }
        let root = [source.join("lib.rs"), source.join("main.rs")]
            .into_iter()
            .find(|f| f.exists());
        let root = root.unwrap_or_else(|| panic!("{name} has no crate root"));
        assert!(
            read(&root).contains("#![forbid(unsafe_code)]"),
            "{}: forbid unsafe code",
            root.display()
        );
    }
}

#[test]
fn tidy_unsafe_blocks_are_explained() {
    for name in MAY_BE_UNSAFE {
        for file in rust_files()
            .into_iter()
            .filter(|f| f.starts_with(root().join("crates").join(name)))
        {
            let text = read(&file);
            if code_without_remarks(&text).contains("unsafe {") {
                assert!(
                    text.contains("// SAFETY:"),
                    "{}: unsafe without a SAFETY remark",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn tidy_every_target_is_documented_compared_and_listed() {
    let compat = read(&root().join("COMPAT.md"));
    let cases: String = files_under(&root().join("tests/conformance/cases"))
        .iter()
        .map(|f| read(f))
        .collect();
    let mut names: Vec<&str> = thinmap_targets::ALL
        .iter()
        .map(|target| target.info().name)
        .collect();
    assert!(names.len() >= 6, "only {names:?}");
    names.sort_unstable();
    for name in names {
        let page = root().join("docs/targets").join(format!("{name}.md"));
        assert!(
            page.exists(),
            "target {name} has no page {}",
            page.display()
        );
        assert!(
            compat.contains(&format!("| target `{name}`")),
            "COMPAT.md has no row \"| target `{name}`\""
        );
        let in_table = [format!(" {name} "), format!(" {name}\"")];
        assert!(
            in_table.iter().any(|text| cases.contains(text)),
            "no conformance case has a table with {name}"
        );
    }
}

#[test]
fn tidy_no_path_of_one_machine() {
    // In halves, so that this file passes its own rule.
    let banned: Vec<String> = [
        ("/wo", "rk/main"),
        ("/wo", "rk/shared"),
        ("/tmp/br", "ief"),
        ("/tmp/tar", "get-"),
        ("/tmp/ora", "cle"),
    ]
    .iter()
    .map(|(head, tail)| format!("{head}{tail}"))
    .collect();
    for file in files_under(&root()) {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        for word in &banned {
            assert!(
                !text.contains(word.as_str()),
                "{}: names {word}",
                file.display()
            );
        }
    }
}

/// Pages whose tables name the test behind each promise.
const PAGES_OF_PROMISES: &[&str] = &["SPECIFICATION.md", "docs/security.md"];

#[test]
fn tidy_every_promise_names_a_test_that_is_there() {
    for page in PAGES_OF_PROMISES {
        let (mut promises, mut in_table) = (0, false);
        for line in read(&root().join(page)).lines() {
            let last = last_column(line);
            in_table = last == Some("test") || (in_table && last.is_some());
            let Some(test) = last.filter(|last| in_table && !["test", "---"].contains(last)) else {
                continue;
            };
            promises += 1;
            let named: Vec<&str> = test.split('`').skip(1).step_by(2).collect();
            let says_why = ["measured", "not tested"]
                .iter()
                .any(|word| test.contains(word));
            assert!(
                !named.is_empty() || says_why,
                "{page}: no test, and not said that there is none: {line}"
            );
            for name in named {
                assert!(is_there(name), "{page}: there is no {name}: {line}");
            }
        }
        assert!(promises > 10, "{page}: only {promises} promises");
    }
}

/// The last column of a table's row.
fn last_column(line: &str) -> Option<&str> {
    line.strip_prefix("| ")?
        .strip_suffix(" |")?
        .rsplit(" | ")
        .next()
}

/// A path, with `*` in its last part, or `path: function` as `path::function`.
fn is_there(name: &str) -> bool {
    let (path, function) = match name.split_once("::") {
        Some((path, function)) => (path, Some(function)),
        None => (name, None),
    };
    if let Some((folder, pattern)) = path.rsplit_once('/')
        && let Some((head, tail)) = pattern.split_once('*')
    {
        return fs::read_dir(root().join(folder)).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name.starts_with(head) && name.ends_with(tail)
            })
        });
    }
    let path = root().join(path);
    path.exists()
        && function.is_none_or(|function| read(&path).contains(&format!("fn {function}(")))
}

/// Where crates come from, in both lock files, and under what terms, as far as Cargo knows. deny.toml is the list.
#[test]
fn tidy_crates_come_from_one_registry_under_known_licences() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let table: toml::Table = read(&root().join(lock)).parse().expect("a lock file");
        let packages = table["package"].as_array().expect("packages");
        assert!(packages.len() > 50);
        for package in packages {
            let Some(source) = package.get("source") else {
                continue;
            };
            let name = &package["name"];
            assert_eq!(
                source.as_str(),
                Some("registry+https://github.com/rust-lang/crates.io-index"),
                "{lock}: {name}"
            );
            assert!(package.get("checksum").is_some(), "{lock}: {name}");
        }
    }
    let policy: toml::Table = read(&root().join("deny.toml")).parse().expect("deny.toml");
    let allowed: Vec<&str> = policy["licenses"]["allow"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|licence| licence.as_str())
        .collect();
    for (name, licence) in licences() {
        let one_allowed = |part: &str| {
            part.split(" OR ")
                .any(|choice| allowed.contains(&choice.trim_matches(['(', ')', ' '])))
        };
        // The old way of writing OR is a slash.
        let licence = licence.replace('/', " OR ");
        assert!(
            licence.split(" AND ").all(one_allowed),
            "{name}: its licence is {licence:?}, see deny.toml"
        );
    }
}

/// Every package that is built, with its licence.
fn licences() -> Vec<(String, String)> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages").iter();
    packages
        .map(|package| {
            let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
            (text("name"), text("license"))
        })
        .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace")
        .to_owned()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Each crate by its short name, with its manifest.
fn manifests() -> Vec<(String, PathBuf)> {
    let mut found = vec![("tests".to_owned(), root().join("tests/Cargo.toml"))];
    for group in ["crates", "apps"] {
        for entry in fs::read_dir(root().join(group)).expect("crates") {
            let manifest = entry.expect("entry").path().join("Cargo.toml");
            if manifest.exists() {
                let name = manifest.parent().and_then(Path::file_name).expect("a name");
                found.push((name.to_string_lossy().into_owned(), manifest));
            }
        }
    }
    found
}

/// The short names of the workspace's crates in a manifest's [dependencies].
fn workspace_dependencies(manifest: &Path) -> Vec<String> {
    let table: toml::Table = read(manifest)
        .parse()
        .unwrap_or_else(|e| panic!("{}: {e}", manifest.display()));
    let Some(dependencies) = table.get("dependencies").and_then(|d| d.as_table()) else {
        return Vec::new();
    };
    dependencies
        .keys()
        .filter_map(|key| key.strip_prefix("thinmap-"))
        .map(str::to_owned)
        .collect()
}

fn rust_files() -> Vec<PathBuf> {
    let mut files = files_under(&root());
    files.retain(|file| file.extension().is_some_and(|e| e == "rs"));
    assert!(
        files.len() > 50,
        "only {} source files were found",
        files.len()
    );
    files
}

/// Every file of the project, without what is built, fetched or hidden.
fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("directory") {
            let path = entry.expect("entry").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name == "target"
                || name.starts_with(".git")
                || name == ".cache"
                || name.ends_with(".img")
            {
                continue;
            }
            match path.is_dir() {
                true => open.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    files
}

fn code_without_remarks(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .filter(|line| !line.contains("unsafe_code"))
        .fold(String::new(), |all, line| all + line + "\n")
}
