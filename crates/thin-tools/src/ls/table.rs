//! `ls` as a table for people, and as JSON.

use super::{Field, VolumeUse};

/// thin_ls's table: right-aligned columns, a space behind each.
pub fn table(uses: &[VolumeUse], fields: &[Field], headers: bool, block_sectors: u64) -> String {
    let rows: Vec<Vec<String>> = uses
        .iter()
        .map(|used| fields.iter().map(|f| f.text(used, block_sectors)).collect())
        .collect();
    let mut widths: Vec<usize> = fields
        .iter()
        .map(|field| if headers { field.name().len() } else { 0 })
        .collect();
    for row in &rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = text.len().max(*width);
        }
    }
    let mut table = String::new();
    let mut line = |texts: &mut dyn Iterator<Item = &str>| {
        for (text, width) in texts.zip(&widths) {
            table.push_str(&" ".repeat(width - text.len()));
            table.push_str(text);
            table.push(' ');
        }
        table.push('\n');
    };
    if headers {
        line(&mut fields.iter().map(|field| field.name()));
    }
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
    table
}

/// A list of objects: the fields' names in lower case, and numbers in the unit of the name, bytes where it
/// has none.
pub fn json(uses: &[VolumeUse], fields: &[Field], block_sectors: u64) -> serde_json::Value {
    let object = |used: &VolumeUse| -> serde_json::Value {
        fields
            .iter()
            .map(|field| {
                let number = field.number(used, block_sectors);
                (field.name().to_lowercase(), number.into())
            })
            .collect::<serde_json::Map<String, serde_json::Value>>()
            .into()
    };
    uses.iter().map(object).collect()
}
