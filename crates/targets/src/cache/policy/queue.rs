//! Least-recently-used lists stacked into levels: what is used moves up, what others displace moves down.

/// Levels of a queue.
pub(super) const LEVELS: u8 = 64;
const NONE: u32 = u32::MAX;

/// What a queue holds; it lives in a slice that the caller keeps, and is known by its place there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    /// A block of the origin, or of what the caller counts.
    pub block: u64,
    prev: u32,
    next: u32,
    pub level: u8,
    /// The caller's.
    pub flags: u8,
    /// Which of the caller's periods it came in.
    pub since: u32,
    /// In which of the caller's rounds it was last used.
    pub used: u32,
}

impl Node {
    pub const FREE: Self = Self {
        block: 0,
        prev: NONE,
        next: NONE,
        level: 0,
        flags: 0,
        since: 0,
        used: 0,
    };
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
    len: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    lists: [List; LEVELS as usize],
    len: u32,
    /// The topmost levels are meant for few: so many levels, so many in them.
    top: (u8, u32),
}

impl Queue {
    pub fn new(top: (u8, u32)) -> Self {
        let empty = List {
            head: NONE,
            tail: NONE,
            len: 0,
        };
        Self {
            lists: [empty; LEVELS as usize],
            len: 0,
            top,
        }
    }

    /// As the latest of its level.
    pub fn push_back(&mut self, nodes: &mut [Node], at: u32) {
        let list = &mut self.lists[usize::from(nodes[at as usize].level)];
        let node = &mut nodes[at as usize];
        (node.prev, node.next) = (list.tail, NONE);
        match list.tail {
            NONE => list.head = at,
            tail => nodes[tail as usize].next = at,
        }
        list.tail = at;
        list.len += 1;
        self.len += 1;
    }

    /// As the oldest of its level.
    pub fn push_front(&mut self, nodes: &mut [Node], at: u32) {
        let list = &mut self.lists[usize::from(nodes[at as usize].level)];
        let node = &mut nodes[at as usize];
        (node.prev, node.next) = (NONE, list.head);
        match list.head {
            NONE => list.tail = at,
            head => nodes[head as usize].prev = at,
        }
        list.head = at;
        list.len += 1;
        self.len += 1;
    }

    pub fn remove(&mut self, nodes: &mut [Node], at: u32) {
        let Node {
            prev, next, level, ..
        } = nodes[at as usize];
        let list = &mut self.lists[usize::from(level)];
        match prev {
            NONE => list.head = next,
            prev => nodes[prev as usize].next = next,
        }
        match next {
            NONE => list.tail = prev,
            next => nodes[next as usize].prev = prev,
        }
        list.len -= 1;
        self.len -= 1;
    }

    /// The oldest of the lowest level that has any, of so many levels; with `before` only one that came in an earlier period.
    pub fn oldest(&self, nodes: &[Node], levels: u8, before: Option<u32>) -> Option<u32> {
        let lists = self.lists.iter().take(usize::from(levels));
        let heads = lists.map(|list| list.head).filter(|head| *head != NONE);
        heads
            .into_iter()
            .find(|head| before.is_none_or(|before| nodes[*head as usize].since < before))
    }

    /// It was used: it becomes the latest, so many levels higher, and the oldest there takes its place.
    pub fn used(&mut self, nodes: &mut [Node], at: u32, jump: u8) {
        let level = nodes[at as usize].level;
        let to = level.saturating_add(jump).min(LEVELS - 1);
        if to > level && self.lists[usize::from(to)].head != NONE {
            let down = self.lists[usize::from(to)].head;
            self.remove(nodes, down);
            nodes[down as usize].level = level;
            self.push_back(nodes, down);
        }
        self.remove(nodes, at);
        nodes[at as usize].level = to;
        self.push_back(nodes, at);
    }

    /// How many are meant to be in a level.
    fn target(&self, level: u8) -> u32 {
        let share = |all: u32, levels: u8, index: u8| {
            let (each, rest) = (all / u32::from(levels), all % u32::from(levels));
            each + u32::from(u32::from(index) < rest)
        };
        let (top_levels, in_top) = self.top;
        let below = LEVELS - top_levels;
        match level.checked_sub(below) {
            Some(index) => share(in_top, top_levels, index),
            None => share(self.len.saturating_sub(in_top), below, level),
        }
    }

    /// Gives each level as many as are meant to be in it, without changing the order.
    pub fn redistribute(&mut self, nodes: &mut [Node]) {
        let mut above = 0;
        for level in 0..LEVELS - 1 {
            let target = self.target(level);
            let at = usize::from(level);
            while self.lists[at].len < target {
                above = above.max(at + 1);
                while above < usize::from(LEVELS) && self.lists[above].len == 0 {
                    above += 1;
                }
                if above == usize::from(LEVELS) {
                    break;
                }
                let node = self.lists[above].head;
                self.remove(nodes, node);
                nodes[node as usize].level = level;
                self.push_back(nodes, node);
            }
            while self.lists[at].len > target {
                let node = self.lists[at].tail;
                self.remove(nodes, node);
                nodes[node as usize].level = level + 1;
                self.push_back(nodes, node);
                above = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_rises_and_displaces_the_oldest_above() {
        let mut nodes = [Node::FREE; 3];
        nodes[2].level = 1;
        let mut queue = Queue::new((0, 0));
        for at in 0..3 {
            queue.push_back(&mut nodes, at);
        }
        assert_eq!(queue.oldest(&nodes, LEVELS, None), Some(0));
        queue.used(&mut nodes, 0, 1);
        assert_eq!((nodes[0].level, nodes[2].level), (1, 0));
        assert_eq!(queue.oldest(&nodes, LEVELS, None), Some(1));
        queue.used(&mut nodes, 1, 0);
        assert_eq!(queue.oldest(&nodes, LEVELS, None), Some(2));
        nodes[0].since = 5;
        queue.remove(&mut nodes, 1);
        queue.remove(&mut nodes, 2);
        assert_eq!(queue.oldest(&nodes, LEVELS, Some(5)), None);
        assert_eq!(queue.oldest(&nodes, LEVELS, Some(6)), Some(0));
        assert_eq!(queue.oldest(&nodes, 1, None), None);
    }

    #[test]
    fn levels_get_the_shares_that_are_meant_for_them() {
        let mut nodes = vec![Node::FREE; 1000];
        let mut queue = Queue::new((8, 20));
        for at in 0..1000 {
            nodes[at as usize].level = (at % 7) as u8 * 9;
            queue.push_back(&mut nodes, at);
        }
        queue.redistribute(&mut nodes);
        assert_eq!(queue.len, 1000);
        for level in 0..LEVELS {
            let len = queue.lists[usize::from(level)].len;
            assert_eq!(len, queue.target(level), "level {level}");
        }
        let top: u32 = queue.lists[56..].iter().map(|list| list.len).sum();
        assert_eq!(top, 20);
    }
}
