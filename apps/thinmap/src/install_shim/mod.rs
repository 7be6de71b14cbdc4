//! `thinmap install-shim` and `thinmap uninstall-shim`: the shim in every program of a system, by way of /etc/ld.so.preload.
//!
//! INVARIANT: /etc/ld.so.preload never names a library that is not there, whole and tried: the library comes first and goes last. One that
//! the system's programs cannot load would end every one of them before its `main`.

mod kernel;
mod list;
mod probe;
mod tree;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::io::Errno;

use crate::run::{SHIM, shim};
pub use probe::test_program;
use probe::{Library, Verdict};
use tree::{Contents, NewFile, Tree};

/// Where the library is, as programs of the system see it: a directory that is nobody else's, so that the undo takes away no
/// packaged file.
const LIBRARY_DIR: &str = "/usr/local/lib/thinmap/preload";
const ETC: &str = "/etc";
const LIST: &str = "ld.so.preload";
const LIBRARY_MODE: u32 = 0o755;
const LIST_MODE: u32 = 0o644;
/// User and group.
const ROOT: (u32, u32) = (0, 0);

/// What `install-shim` was told.
pub struct Options {
    /// Another system's tree in place of this one's.
    pub root: Option<PathBuf>,
    /// Although the kernel has its own device mapper.
    pub force: bool,
}

/// `thinmap install-shim`
pub fn install(options: &Options) -> anyhow::Result<()> {
    must_be_root()?;
    let tree = Tree::open(options.root.as_deref())?;
    if tree.is_running() && !options.force {
        kernel::must_have_no_device_mapper()?;
    }
    let source = shim()?;
    let library = std::fs::read(&source).with_context(|| source.display().to_string())?;

    let etc = Etc::lock(&tree)?;
    let list = etc.read_list()?;
    let dir = tree.make_dir(Path::new(LIBRARY_DIR))?;
    let is_up_to_date = tree::read(&dir, SHIM).is_ok_and(|there| {
        there.is_some_and(|there| {
            there.bytes == library && there.mode == LIBRARY_MODE && there.owner == ROOT
        })
    });
    if is_up_to_date {
        verify(&tree, SHIM, &library)?;
    } else {
        let written = put_library(&tree, &dir, &library);
        if written.is_err() {
            remove_empty_dirs(&tree);
        }
        written?;
    }
    let shown = tree.shown(&library_path());
    let state = if is_up_to_date {
        "is up to date"
    } else {
        "installed"
    };
    println!("{}: {state}", shown.display());

    let before = list.as_ref().map_or(&[][..], |list| &list.bytes);
    let path = library_path();
    if list::names(before, &path) {
        println!("{}: names it already", etc.list_path().display());
    } else {
        etc.write_list(list.as_ref(), &list::with(before, &path))?;
        println!("{}: entry added", etc.list_path().display());
    }
    Ok(())
}

/// `thinmap uninstall-shim`
pub fn uninstall(root: Option<&Path>) -> anyhow::Result<()> {
    must_be_root()?;
    let tree = Tree::open(root)?;
    let etc = Etc::lock(&tree)?;
    let mut found = false;
    if let Some(list) = etc.read_list()?
        && list::names(&list.bytes, &library_path())
    {
        found = true;
        etc.write_list(Some(&list), &list::without(&list.bytes, &library_path()))?;
        println!("{}: entry removed", etc.list_path().display());
    }
    // Programs that have it mapped keep it.
    if let Some(dir) = tree.dir(Path::new(LIBRARY_DIR))?
        && tree::remove(&dir, SHIM)
            .with_context(|| tree.shown(&library_path()).display().to_string())?
    {
        found = true;
        println!("{}: removed", tree.shown(&library_path()).display());
    }
    remove_empty_dirs(&tree);
    if !found {
        println!("The shim is not installed.");
    }
    Ok(())
}

fn must_be_root() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root may change what every program loads (/etc/{LIST})");
    }
    Ok(())
}

fn library_path() -> PathBuf {
    Path::new(LIBRARY_DIR).join(SHIM)
}

/// Puts the library in its place by a rename: programs that have an older one mapped keep that one. It is tried under its temporary
/// name, so that a bad one never stands where a good one stood.
fn put_library(tree: &Tree, dir: &OwnedFd, library: &[u8]) -> anyhow::Result<()> {
    let file = || tree.shown(&library_path()).display().to_string();
    let new = NewFile::write(dir, SHIM, library, LIBRARY_MODE, ROOT).with_context(file)?;
    verify(tree, new.temporary_name(), library)?;
    new.commit().with_context(file)
}

/// Lets a program of the tree load the library of this name.
fn verify(tree: &Tree, name: &str, library: &[u8]) -> anyhow::Result<()> {
    let library = Library {
        path: &Path::new(LIBRARY_DIR).join(name),
        bytes: library,
    };
    match probe::run(tree, &library)? {
        Verdict::Loads => Ok(()),
        Verdict::Refused(why) => {
            bail!("{SHIM} would not load in {}: {why}", tree.name())
        }
        Verdict::Untried(why) if tree.is_running() => {
            bail!("{SHIM} could not be tried: {why}")
        }
        Verdict::Untried(why) => {
            eprintln!("thinmap: {SHIM} was not tried in {}: {why}", tree.name());
            Ok(())
        }
    }
}

/// The library's directory and the one around it, as far as nothing is in them.
fn remove_empty_dirs(tree: &Tree) {
    for dir in Path::new(LIBRARY_DIR).ancestors().take(2) {
        // Something else is there, or nothing at all: either is well.
        let _ = tree.remove_dir(dir);
    }
}

/// The directory of ld.so.preload; whoever has it locked is the only one to change that file.
struct Etc<'a> {
    tree: &'a Tree,
    dir: OwnedFd,
}

impl<'a> Etc<'a> {
    fn lock(tree: &'a Tree) -> anyhow::Result<Self> {
        let shown = tree.shown(Path::new(ETC));
        let dir = tree
            .dir(Path::new(ETC))?
            .with_context(|| format!("{}: no such directory", shown.display()))?;
        rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive)
            .with_context(|| shown.display().to_string())?;
        Ok(Self { tree, dir })
    }

    fn list_path(&self) -> PathBuf {
        self.tree.shown(&Path::new(ETC).join(LIST))
    }

    fn read_list(&self) -> anyhow::Result<Option<Contents>> {
        tree::read(&self.dir, LIST).map_err(|errno| {
            let file = self.list_path();
            match errno {
                // A rename would put a file in place of the link, and the link's target may be meant for others.
                Errno::LOOP => anyhow::anyhow!(
                    "{}: is a symbolic link; edit what it points to by hand",
                    file.display()
                ),
                errno => anyhow::Error::new(errno).context(file.display().to_string()),
            }
        })
    }

    /// Replaces the list by `bytes`, or removes it when nothing is left to say.
    fn write_list(&self, before: Option<&Contents>, bytes: &[u8]) -> anyhow::Result<()> {
        let file = || self.list_path().display().to_string();
        if bytes.is_empty() {
            tree::remove(&self.dir, LIST).with_context(file)?;
            return Ok(());
        }
        let (mode, owner) = before.map_or((LIST_MODE, ROOT), |file| (file.mode, file.owner));
        NewFile::write(&self.dir, LIST, bytes, mode, owner)
            .and_then(NewFile::commit)
            .with_context(file)
    }
}
