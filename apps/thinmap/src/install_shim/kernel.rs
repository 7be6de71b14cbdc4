//! Whether the running kernel has a device mapper of its own.
//!
//! Asked in a way that no shim stands before: in this very program one may be preloaded already.

use anyhow::{Context, bail};
use rustix::io::Errno;
use thinmap_interpose::read_kernels;

const NAME: &str = "device-mapper";
const MODULE: &str = "/dm-mod.ko";

/// Refuses where programs would be cut off from the kernel's own device mapper, and says why.
pub fn must_have_no_device_mapper() -> anyhow::Result<()> {
    let release = rustix::system::uname();
    let modules = format!(
        "/lib/modules/{}/modules.dep",
        release.release().to_string_lossy()
    );
    let places = [
        ("/proc/misc", has_driver as fn(&str) -> bool),
        ("/proc/devices", has_driver),
        (&modules, has_module),
    ];
    for (file, has_it) in places {
        let is_there = match read_kernels(file) {
            Ok(text) => has_it(&text),
            // Containers and small images have no modules.
            Err(Errno::NOENT | Errno::NOTDIR) if file == modules => false,
            Err(errno) => {
                return Err(errno).with_context(|| {
                    format!(
                        "{file}: cannot see whether the kernel has its own device mapper (--force installs without looking)"
                    )
                });
            }
        };
        if is_there {
            bail!(
                "the kernel has its own device mapper ({file} lists it): with the shim in every program, none would reach it or \
                 its devices any more (--force installs all the same)"
            );
        }
    }
    Ok(())
}

/// /proc/misc and /proc/devices: a number and a name.
fn has_driver(text: &str) -> bool {
    text.lines()
        .any(|line| line.split_whitespace().nth(1) == Some(NAME))
}

/// modules.dep: a module's file, a colon, the files that it needs.
fn has_module(text: &str) -> bool {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(file, _)| {
            let start = file.rfind('/').unwrap_or(0);
            file.get(start..)
                .is_some_and(|name| name.starts_with(MODULE))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_and_modules_are_found_by_their_whole_name() {
        assert!(has_driver("237 loop-control\n236 device-mapper\n"));
        assert!(has_driver("Block devices:\n  7 loop\n253 device-mapper\n"));
        assert!(!has_driver("236 device-mapper-like\n"));
        assert!(!has_driver("Block devices:\n  7 loop\n\n"));
        assert!(has_module(
            "kernel/drivers/md/dm-mod.ko.xz: kernel/lib/x.ko.xz\n"
        ));
        assert!(!has_module(
            "kernel/drivers/md/dm-crypt.ko: kernel/drivers/md/dm-mod.ko\n"
        ));
    }
}
