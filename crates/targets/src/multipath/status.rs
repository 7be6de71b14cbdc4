//! Status and table lines. Every word has a blank behind it, the last one too, as in the kernel.

use std::sync::atomic::Ordering;

use thinmap_dm::StatusKind;

use super::routing::{Group, Routing};
use super::{NAME, VERSION};
use crate::args::measured;

/// Appends a line.
pub(super) fn tell(routing: &Routing, kind: StatusKind, out: &mut String) {
    match kind {
        StatusKind::Info => info(routing, out),
        StatusKind::Table => table(routing, out),
        StatusKind::Measurement => measurement(routing, out),
    }
}

fn info(routing: &Routing, out: &mut String) {
    let queue_io = u8::from(routing.queue_io.load(Ordering::SeqCst));
    let pg_init_count = routing.pg_init_count.load(Ordering::SeqCst);
    out.push_str(&format!(
        "2 {queue_io} {pg_init_count} 0 {} {} ",
        routing.groups.len(),
        routing.group_number()
    ));
    for (index, group) in routing.groups.iter().enumerate() {
        out.push_str(&format!("{} ", letter(routing, index, group)));
        counts(group, StatusKind::Info, out);
        for path in &group.paths {
            let state = if path.is_active() { 'A' } else { 'F' };
            out.push_str(&format!("{} {state} {} ", path.device, path.fail_count()));
            out.push_str(&group.ring.path_words(&path.load, StatusKind::Info));
        }
    }
}

fn table(routing: &Routing, out: &mut String) {
    let features = &routing.features;
    let mut words: Vec<String> = Vec::new();
    if routing.queues_if_no_path() {
        words.push("queue_if_no_path".to_owned());
    }
    if features.pg_init_retries > 0 {
        words.push("pg_init_retries".to_owned());
        words.push(features.pg_init_retries.to_string());
    }
    if let Some(delay) = features.pg_init_delay {
        words.push("pg_init_delay_msecs".to_owned());
        words.push(delay.to_string());
    }
    if features.retain_attached_hw_handler {
        words.push("retain_attached_hw_handler".to_owned());
    }
    if features.bio_based {
        words.extend(["queue_mode", "bio"].map(str::to_owned));
    }
    out.push_str(&format!("{} ", words.len()));
    for word in words {
        out.push_str(&format!("{word} "));
    }
    match &routing.handler {
        Some(handler) => out.push_str(&format!("1 {handler} ")),
        None => out.push_str("0 "),
    }
    out.push_str(&format!(
        "{} {} ",
        routing.groups.len(),
        routing.group_number()
    ));
    for group in &routing.groups {
        out.push_str(&format!("{} ", group.ring.selector.name()));
        counts(group, StatusKind::Table, out);
        for path in &group.paths {
            out.push_str(&format!("{} ", path.device));
            out.push_str(&group.ring.path_words(&path.load, StatusKind::Table));
        }
    }
}

/// The selector's arguments, the number of paths, and that of words for each.
fn counts(group: &Group, kind: StatusKind, out: &mut String) {
    let selector = group.ring.selector;
    out.push_str(&format!(
        "{}{} {} ",
        selector.words(),
        group.paths.len(),
        selector.path_word_count(kind)
    ));
}

fn letter(routing: &Routing, index: usize, group: &Group) -> char {
    if group.is_bypassed() {
        'D'
    } else if routing.current() == Some(index) {
        'A'
    } else {
        'E'
    }
}

fn measurement(routing: &Routing, out: &mut String) {
    out.push_str(&measured(NAME, VERSION));
    out.push_str(&format!(",nr_priority_groups={}", routing.groups.len()));
    for (nr, group) in routing.groups.iter().enumerate() {
        out.push_str(&format!(
            ",pg_state_{nr}={},nr_pgpaths_{nr}={},path_selector_name_{nr}={}",
            letter(routing, nr, group),
            group.paths.len(),
            group.ring.selector.name()
        ));
        for (of, path) in group.paths.iter().enumerate() {
            let state = if path.is_active() { 'A' } else { 'F' };
            out.push_str(&format!(
                ",path_name_{nr}_{of}={},is_active_{nr}_{of}={state},fail_count_{nr}_{of}={},path_selector_status_{nr}_{of}=",
                path.device,
                path.fail_count()
            ));
        }
    }
    out.push(';');
}
