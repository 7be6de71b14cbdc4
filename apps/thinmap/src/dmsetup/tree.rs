//! `ls --tree`: which device stands on which, and the report fields that ask the same.

use std::collections::HashMap;

use thinmap_control::{DeviceInfo, Request, Response};
use thinmap_units::DevNo;

use super::block_names::DevNameKind;
use super::task::{Subject, TaskEnd};
use super::{Dmsetup, Done};

/// Deeper trees are cut, as dmsetup does.
const DEPTH_MAX: usize = 100;
/// Where lines are cut when standard output is no terminal.
const WIDTH_DEFAULT: usize = 80;

/// All mapped devices and what they use.
#[derive(Default)]
pub struct DeviceTree {
    nodes: HashMap<DevNo, TreeNode>,
    /// Devices that no other uses, and devices that use no other, in the order found.
    top: Vec<DevNo>,
    bottom: Vec<DevNo>,
}

/// One device.
#[derive(Default)]
pub struct TreeNode {
    /// Empty for what is no mapped device.
    pub name: String,
    uuid: String,
    info: Option<DeviceInfo>,
    pub uses: Vec<DevNo>,
    pub used_by: Vec<DevNo>,
}

impl DeviceTree {
    pub fn node(&self, dev: DevNo) -> Option<&TreeNode> {
        self.nodes.get(&dev)
    }

    /// Links a device below its user, or to the top when it has none yet.
    fn link(&mut self, user: Option<DevNo>, dev: DevNo) {
        let Some(user) = user else {
            let used = self
                .nodes
                .get(&dev)
                .is_some_and(|node| !node.used_by.is_empty());
            if !used && !self.top.contains(&dev) {
                self.top.push(dev);
            }
            return;
        };
        self.top.retain(|top| *top != dev);
        if let Some(node) = self.nodes.get_mut(&user)
            && !node.uses.contains(&dev)
        {
            node.uses.push(dev);
        }
        if let Some(node) = self.nodes.get_mut(&dev)
            && !node.used_by.contains(&user)
        {
            node.used_by.push(user);
        }
    }

    fn children(&self, dev: DevNo, inverted: bool) -> &[DevNo] {
        match self.nodes.get(&dev) {
            Some(node) if inverted => &node.used_by,
            Some(node) => &node.uses,
            None => &[],
        }
    }

    fn roots(&self, inverted: bool) -> &[DevNo] {
        if inverted { &self.bottom } else { &self.top }
    }
}

impl Dmsetup<'_> {
    /// Asks for every device's dependencies, once per run.
    pub(super) fn build_tree(&mut self) -> Done {
        if self.tree.is_some() {
            return Ok(());
        }
        let devices = self.list_devices()?;
        if devices.is_empty() {
            self.console.line("No devices found");
        }
        let mapped: Vec<DevNo> = devices.iter().map(|device| device.dev).collect();
        let mut tree = DeviceTree::default();
        for dev in &mapped {
            self.add_to_tree(&mut tree, &mapped, None, *dev)?;
        }
        self.tree = Some(tree);
        Ok(())
    }

    fn add_to_tree(
        &mut self,
        tree: &mut DeviceTree,
        mapped: &[DevNo],
        user: Option<DevNo>,
        dev: DevNo,
    ) -> Result<(), TaskEnd> {
        let new = !tree.nodes.contains_key(&dev);
        let mut uses = Vec::new();
        if new {
            let mut node = TreeNode::default();
            if mapped.contains(&dev) {
                uses = self.read_node(&mut node, dev)?;
            }
            tree.nodes.insert(dev, node);
        }
        tree.link(user, dev);
        if !new {
            return Ok(());
        }
        if uses.is_empty() {
            tree.bottom.push(dev);
        }
        for used in uses {
            self.add_to_tree(tree, mapped, Some(dev), used)?;
        }
        Ok(())
    }

    fn read_node(&mut self, node: &mut TreeNode, dev: DevNo) -> Result<Vec<DevNo>, TaskEnd> {
        let subject = Subject {
            dev: Some(dev),
            ..Subject::default()
        };
        let response = self.task("deps", &subject, |device| Request::TableDeps {
            device,
            inactive: false,
        })?;
        let Response::Deps(deps) = response else {
            return Err(self.unexpected("deps", &subject));
        };
        let lost = TaskEnd::Failed { errno: 0 };
        node.name = self.shown_name(&deps.info.name).map_err(|_| lost)?;
        node.uuid = self.shown_uuid(deps.info.uuid.as_ref()).map_err(|_| lost)?;
        node.info = Some(deps.info);
        Ok(deps.devices.unwrap_or_default())
    }

    /// `ls --tree`
    pub(super) fn print_tree(&mut self) -> Done {
        self.build_tree()?;
        let Some(tree) = self.tree.take() else {
            return Ok(());
        };
        let style = self.tree_style.clone();
        let mut painter = Painter::new(style);
        let roots = tree.roots(painter.style.inverted).to_vec();
        self.paint_children(&mut painter, &tree, &roots, 0);
        self.console.print(&painter.out);
        self.tree = Some(tree);
        Ok(())
    }

    fn paint_children(
        &mut self,
        painter: &mut Painter,
        tree: &DeviceTree,
        devices: &[DevNo],
        depth: usize,
    ) {
        for (index, dev) in devices.iter().enumerate() {
            let children = tree.children(*dev, painter.style.inverted).to_vec();
            let last = index + 1 == devices.len();
            let kind = match painter.style.block_names {
                true => DevNameKind::BlockDevice,
                false => DevNameKind::Number,
            };
            let block_name = self.device_name(*dev, kind);
            painter.node(tree, *dev, depth, last, !children.is_empty(), block_name);
            if !children.is_empty() {
                self.paint_children(painter, tree, &children, depth + 1);
            }
        }
    }
}

/// The strings that a tree is drawn with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Symbols {
    empty: &'static str,
    branch: &'static str,
    vertical: &'static str,
    last: &'static str,
    single: &'static str,
    first: &'static str,
}

const ASCII: Symbols = Symbols {
    empty: "  ",
    branch: "|-",
    vertical: "| ",
    last: "`-",
    single: "---",
    first: "-+-",
};

const UTF: Symbols = Symbols {
    empty: "  ",
    branch: "├─",
    vertical: "│ ",
    last: "└─",
    single: "───",
    first: "─┬─",
};

const VT100: Symbols = Symbols {
    empty: "  ",
    branch: "\x1b(0\x0ftq\x1b(B",
    vertical: "\x1b(0\x0fx\x1b(B ",
    last: "\x1b(0\x0fmq\x1b(B",
    single: "\x1b(0\x0fqqq\x1b(B",
    first: "\x1b(0\x0fqwq\x1b(B",
};

/// `-o` of `ls --tree`.
#[derive(Clone, Debug)]
pub struct Style {
    symbols: Symbols,
    numbers: bool,
    block_names: bool,
    active: bool,
    open: bool,
    uuid: bool,
    read_write: bool,
    targets: bool,
    compact: bool,
    truncate: bool,
    inverted: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            symbols: if locale_is_utf8() { UTF } else { ASCII },
            numbers: true,
            block_names: false,
            active: false,
            open: false,
            uuid: false,
            read_write: false,
            targets: false,
            compact: false,
            truncate: true,
            inverted: false,
        }
    }
}

fn locale_is_utf8() -> bool {
    let set = |name| {
        std::env::var(name)
            .ok()
            .filter(|value: &String| !value.is_empty())
    };
    let locale = set("LC_ALL")
        .or_else(|| set("LC_CTYPE"))
        .or_else(|| set("LANG"));
    locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.ends_with("utf-8") || locale.ends_with("utf8")
    })
}

impl Style {
    /// Reads a comma-separated `-o`; words may be cut short. An error is the line to print.
    pub fn parse(options: &str) -> Result<Self, String> {
        let mut style = Self::default();
        let mut rest = options;
        while !rest.is_empty() {
            let (word, tail) = rest.split_once(',').unwrap_or((rest, ""));
            let is = |option: &str| option.starts_with(word);
            if is("device") {
                style.numbers = true;
            } else if is("blkdevname") {
                style.block_names = true;
            } else if is("nodevice") {
                style.numbers = false;
            } else if is("status") || is("table") {
                style.targets = true;
            } else if is("active") {
                style.active = true;
            } else if is("open") {
                style.open = true;
            } else if is("uuid") {
                style.uuid = true;
            } else if is("rw") {
                style.read_write = true;
            } else if is("utf") {
                style.symbols = UTF;
            } else if is("vt100") {
                style.symbols = VT100;
            } else if is("ascii") {
                style.symbols = ASCII;
            } else if is("inverted") {
                style.inverted = true;
            } else if is("compact") {
                style.compact = true;
            } else if is("notrunc") {
                style.truncate = false;
            } else {
                return Err(format!("Tree options not recognised: {rest}."));
            }
            rest = tail;
        }
        Ok(style)
    }

    fn attributes(&self) -> bool {
        self.active || self.read_write || self.open || self.uuid
    }

    fn is_compact(&self) -> bool {
        self.compact && !self.attributes() && !self.targets
    }
}

/// Draws lines, cutting them at the terminal's width.
struct Painter {
    style: Style,
    out: String,
    line: String,
    width: usize,
    /// Per depth: the width of the node above, and whether more siblings follow.
    node_widths: Vec<usize>,
    more: Vec<bool>,
}

impl Painter {
    fn new(style: Style) -> Self {
        // Cutting by columns would cut the escape sequences of a VT100.
        let width = (style.symbols != VT100).then(terminal_width).flatten();
        Self {
            style,
            out: String::new(),
            line: String::new(),
            width: width.unwrap_or(WIDTH_DEFAULT),
            node_widths: vec![0; DEPTH_MAX],
            more: vec![false; DEPTH_MAX],
        }
    }

    fn node(
        &mut self,
        tree: &DeviceTree,
        dev: DevNo,
        depth: usize,
        last: bool,
        has_children: bool,
        block_name: Option<String>,
    ) {
        let Some(node) = tree.node(dev) else { return };
        let nameless = node.name.is_empty() && !self.style.numbers && !self.style.block_names;
        if depth + 2 > DEPTH_MAX || nameless {
            return;
        }
        set(&mut self.more, depth, !last);
        set(&mut self.node_widths, depth, 0);
        let compact = self.style.is_compact();
        let first_on_line = self.line.is_empty();
        if !compact || first_on_line {
            self.prefix(depth);
        }
        let start = self.line.chars().count();
        if compact && !first_on_line {
            let symbols = self.style.symbols;
            self.line
                .push_str(if last { symbols.single } else { symbols.first });
        }
        self.line.push_str(&node.name);
        if let Some(name) = block_name {
            self.line.push_str(&format!(" <{name}>"));
        }
        if self.style.numbers {
            self.line.push_str(&format!(" ({dev})"));
        }
        self.attributes(node);
        if compact {
            let width = self.line.chars().count() - start;
            set(&mut self.node_widths, depth, width);
        }
        if !compact || !has_children {
            self.end_line();
        }
    }

    fn prefix(&mut self, depth: usize) {
        let symbols = self.style.symbols;
        for d in 0..depth {
            let width = self.node_widths.get(d).copied().unwrap_or(0);
            self.line.push_str(&" ".repeat(width + 1));
            let more = |depth: usize| self.more.get(depth).copied().unwrap_or(false);
            let symbol = match (d + 1 == depth, more(d + 1)) {
                (true, true) => symbols.branch,
                (true, false) => symbols.last,
                (false, true) => symbols.vertical,
                (false, false) => symbols.empty,
            };
            self.line.push_str(symbol);
        }
    }

    fn attributes(&mut self, node: &TreeNode) {
        let Some(info) = &node.info else { return };
        let mut words = Vec::new();
        if self.style.active {
            words.push(
                if info.suspended {
                    "SUSPENDED"
                } else {
                    "ACTIVE"
                }
                .to_owned(),
            );
        }
        if self.style.read_write {
            let read_only = info.live.is_some_and(|table| table.read_only);
            words.push(if read_only { "RO" } else { "RW" }.to_owned());
        }
        if self.style.open {
            words.push(info.open_count.to_string());
        }
        if self.style.uuid {
            words.push(node.uuid.clone());
        }
        if !words.is_empty() {
            self.line.push_str(&format!(" [{}]", words.join(", ")));
        }
    }

    /// Gives the line out, cut to the width with three dots behind it.
    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        // dmsetup counts columns from 1, so the last one is never used.
        let room = self.width - 1;
        if self.style.truncate && line.chars().count() > room {
            self.out.extend(line.chars().take(room.saturating_sub(1)));
            self.out.push_str("...");
        } else {
            self.out.push_str(&line);
        }
        self.out.push('\n');
    }
}

fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 3).then(|| usize::from(size.ws_col) - 3)
}

fn set<T>(list: &mut [T], index: usize, value: T) {
    if let Some(slot) = list.get_mut(index) {
        *slot = value;
    }
}
