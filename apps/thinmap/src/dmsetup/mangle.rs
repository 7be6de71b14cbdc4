//! `mangle`: gives a device the name that udev can bear, or with `--manglename none` the readable one.

use thinmap_control::Request;
use thinmap_units::DmUuid;

use super::change;
use super::command_table::Call;
use super::names::{self, Kind, Mangling};
use super::switches::Switch;
use super::{Dmsetup, Done, Failed};

/// `mangle`
pub fn mangle(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let by_option = dmsetup.switches.has(Switch::Uuid) || dmsetup.switches.has(Switch::Major);
    match call.args.first() {
        None if !by_option => {
            dmsetup.for_all_devices(false, |dmsetup, name| mangle_one(dmsetup, Some(name)))
        }
        arg => mangle_one(dmsetup, arg.map(String::as_str)),
    }
}

fn mangle_one(dmsetup: &mut Dmsetup<'_>, arg: Option<&str>) -> Done {
    let subject = dmsetup.subject(arg)?;
    let info = dmsetup.device_task("status", &subject, |device| Request::Status {
        device,
        inactive: false,
    })?;
    let name = info.name.as_str();
    let uuid = info.uuid.as_ref().map_or("", DmUuid::as_str);
    let format = dmsetup.switches.mangling.unwrap_or_default();
    if format == Mangling::Auto {
        let twice = [
            (name, "name", "rename the device"),
            (uuid, "UUID", "correct the device UUID"),
        ];
        for (text, label, remedy) in twice {
            if text.contains("\\x5cx") {
                return dmsetup.fail(&format!(
                    "The {label} \"{text}\" seems to be mangled more than once. \
                     Manual intervention required to {remedy}."
                ));
            }
        }
    }
    let new_name = reformed(dmsetup, name, Kind::Name, format)?;
    let new_uuid = reformed(dmsetup, uuid, Kind::Uuid, format)?;
    if new_uuid != uuid {
        dmsetup
            .console
            .error(&format!("{name}: {uuid}: UUID in incorrect form. "));
        return dmsetup.fail("Unable to change device UUID. The device must be deactivated first.");
    }
    if new_name == name {
        let (shown, and) = match uuid {
            "" => ("[no UUID]", ""),
            uuid => (uuid, "and UUID "),
        };
        dmsetup.console.line(&format!(
            "{name}: {shown}: name {and}already in correct form"
        ));
        return Ok(());
    }
    dmsetup
        .console
        .line(&format!("{name}: renaming to {new_name}"));
    dmsetup.switches.clear(Switch::SetUuid);
    change::rename_to(dmsetup, Some(name), &new_name)
}

fn reformed(
    dmsetup: &mut Dmsetup<'_>,
    text: &str,
    kind: Kind,
    format: Mangling,
) -> Result<String, Failed> {
    let result = match format {
        Mangling::None => names::unmangle(text, kind, Mangling::None),
        format => names::mangle(text, kind, format),
    };
    result.or_else(|text| dmsetup.fail(&text))
}
