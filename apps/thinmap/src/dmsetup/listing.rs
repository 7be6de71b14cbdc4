//! `ls`, `deps`, `targets`, `target-version`, `version`, `mknodes`, and the refusal of `stats`.

use thinmap_control::{Request, Response, TargetVersion};

use super::command_table::Call;
use super::switches::Switch;
use super::task::{Subject, TaskEnd};
use super::{Dmsetup, Done, LIBRARY_VERSION, node, status};

/// `ls`
pub fn ls(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    if dmsetup.switches.has(Switch::Target) || dmsetup.switches.has(Switch::Exec) {
        return status::list_by_target(dmsetup, call);
    }
    if dmsetup.switches.has(Switch::Tree) {
        return dmsetup.print_tree();
    }
    let devices = dmsetup.list_devices()?;
    if devices.is_empty() {
        dmsetup.console.line("No devices found");
    }
    for device in devices {
        let name = dmsetup.shown_name(&device.name)?;
        let shown = dmsetup
            .device_name(device.dev, dmsetup.dev_name_kind)
            .unwrap_or_else(|| device.dev.to_string());
        dmsetup.console.line(&format!("{name}\t({shown})"));
    }
    Ok(())
}

/// `deps`
pub fn deps(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let by_option = dmsetup.switches.has(Switch::Uuid) || dmsetup.switches.has(Switch::Major);
    match call.args.first() {
        None if !by_option => {
            dmsetup.for_all_devices(false, |dmsetup, name| deps_of(dmsetup, Some(name), true))
        }
        arg => deps_of(dmsetup, arg.map(String::as_str), call.several_devices),
    }
}

fn deps_of(dmsetup: &mut Dmsetup<'_>, arg: Option<&str>, several: bool) -> Done {
    let subject = dmsetup.subject(arg)?;
    let inactive = dmsetup.switches.has(Switch::Inactive);
    let response = dmsetup.task("deps", &subject, |device| Request::TableDeps {
        device,
        inactive,
    })?;
    let Response::Deps(deps) = response else {
        return Err(dmsetup.unexpected("deps", &subject).into());
    };
    dmsetup.show_if_verbose(&deps.info)?;
    let mut text = String::new();
    if several && !dmsetup.verbose() {
        let name = match arg {
            Some(name) => name.to_owned(),
            None => dmsetup.shown_name(&deps.info.name)?,
        };
        text = format!("{name}: ");
    }
    let devices = deps.devices.unwrap_or_default();
    text += &format!("{} dependencies\t:", devices.len());
    for dev in devices {
        let shown = dmsetup
            .device_name(dev, dmsetup.dev_name_kind)
            .unwrap_or_else(|| format!("{}, {}", dev.major, dev.minor));
        text += &format!(" ({shown})");
    }
    dmsetup.console.line(&text);
    if several && dmsetup.verbose() {
        dmsetup.console.print("\n");
    }
    Ok(())
}

/// `targets`
pub fn targets(dmsetup: &mut Dmsetup<'_>, _call: &Call<'_>) -> Done {
    let versions = target_versions(dmsetup, "versions", &Request::ListVersions, "")?;
    show_versions(dmsetup, &versions);
    Ok(())
}

/// `target-version`
pub fn target_version(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let target = call.args.first().map_or("", String::as_str);
    let name = dmsetup.mangle_name(target)?;
    let request = Request::TargetVersion {
        target: name.clone(),
    };
    let versions = target_versions(dmsetup, "target-version", &request, &name)?;
    show_versions(dmsetup, &versions);
    Ok(())
}

fn target_versions(
    dmsetup: &mut Dmsetup<'_>,
    verb: &str,
    request: &Request,
    name: &str,
) -> Result<Vec<TargetVersion>, TaskEnd> {
    let subject = Subject {
        name: name.to_owned(),
        ..Subject::default()
    };
    match dmsetup.send(verb, &subject, request)? {
        Response::Versions(versions) => Ok(versions),
        _ => Err(dmsetup.unexpected(verb, &subject)),
    }
}

fn show_versions(dmsetup: &mut Dmsetup<'_>, versions: &[TargetVersion]) {
    for target in versions {
        let [major, minor, patch] = target.version;
        let text = format!("{:<16} v{major}.{minor}.{patch}", target.name);
        dmsetup.console.line(&text);
    }
}

/// `version`
pub fn version(dmsetup: &mut Dmsetup<'_>, _call: &Call<'_>) -> Done {
    dmsetup
        .console
        .line(&format!("Library version:   {LIBRARY_VERSION}"));
    let [major, minor, patch] = dmsetup.interface_version()?;
    dmsetup
        .console
        .line(&format!("Driver version:    {major}.{minor}.{patch}"));
    Ok(())
}

/// `mknodes`: puts back nodes that somebody took away. A missing device is no error, as with dmsetup.
///
/// COMPAT: nodes of devices that do not exist are left alone: the directory may hold the kernel's own.
pub fn mknodes(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let name = match call.args.first() {
        Some(name) => Some(dmsetup.subject(Some(name))?.name),
        None => None,
    };
    let exports = match dmsetup.exports(name.as_deref()) {
        Ok(exports) => exports,
        Err(TaskEnd::Missing) => return Ok(()),
        Err(end) => return Err(end.into()),
    };
    let mut result = Ok(());
    for device in exports {
        let Some(target) = device.block_device.or(device.file) else {
            continue;
        };
        let path = dmsetup.paths.dev_dir.join(&device.name);
        if let Err(text) = node::restore(&path, &target) {
            result = dmsetup.fail(&text);
        }
    }
    result
}

/// `stats`
///
/// COMPAT: I/O statistics regions are not there yet.
pub fn stats(dmsetup: &mut Dmsetup<'_>, _call: &Call<'_>) -> Done {
    dmsetup.fail("thinmap: statistics regions (dmsetup stats) are not supported.")
}
