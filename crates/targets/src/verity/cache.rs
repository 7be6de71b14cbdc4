//! Verified blocks of the tree, as many as there is room for. What has not been used since the hand came by goes first (CLOCK).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use thinmap_runtime::IoBuf;

use super::geometry::NodeId;

/// See the module.
pub(super) struct Cache {
    places: HashMap<NodeId, usize>,
    slots: Vec<Slot>,
    limit: usize,
    hand: usize,
}

struct Slot {
    id: NodeId,
    node: Arc<IoBuf>,
    used: AtomicBool,
}

impl Cache {
    /// Of at most `limit` blocks, at least one.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            places: HashMap::new(),
            slots: Vec::new(),
            limit: limit.max(1),
            hand: 0,
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Option<Arc<IoBuf>> {
        let slot = &self.slots[*self.places.get(&id)?];
        slot.used.store(true, Relaxed);
        Some(slot.node.clone())
    }

    /// `node` has been verified.
    pub(super) fn insert(&mut self, id: NodeId, node: Arc<IoBuf>) {
        let slot = Slot {
            id,
            node,
            used: AtomicBool::new(true),
        };
        let place = self.place_for(id);
        if let Some(old) = self.slots.get_mut(place) {
            self.places.remove(&old.id);
            *old = slot;
        } else {
            self.slots.push(slot);
        }
        self.places.insert(id, place);
    }

    fn place_for(&mut self, id: NodeId) -> usize {
        if let Some(place) = self.places.get(&id) {
            return *place;
        }
        if self.slots.len() < self.limit {
            return self.slots.len();
        }
        loop {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            if !self.slots[place].used.swap(false, Relaxed) {
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(nr: u64) -> NodeId {
        NodeId { level: 0, nr }
    }

    fn node(byte: u8) -> Arc<IoBuf> {
        let mut buf = IoBuf::alloc(512);
        buf.as_mut_slice().fill(byte);
        Arc::new(buf)
    }

    #[test]
    fn what_is_used_stays() {
        let mut cache = Cache::new(3);
        for nr in 0..3 {
            cache.insert(id(nr), node(1));
        }
        // The hand goes round once; then 0 is used again, and 1 and 2 are not.
        cache.insert(id(3), node(1));
        assert!(cache.get(id(0)).is_none());
        assert!(cache.get(id(1)).is_some());
        cache.insert(id(4), node(1));
        assert!(cache.get(id(1)).is_some());
        assert!(cache.get(id(2)).is_none());
        assert_eq!((cache.slots.len(), cache.places.len()), (3, 3));
    }

    #[test]
    fn a_block_is_there_once() {
        let mut cache = Cache::new(3);
        cache.insert(id(7), node(1));
        cache.insert(id(7), node(2));
        let found = cache.get(id(7)).expect("a node");
        assert_eq!(found.as_slice()[0], 2);
        assert_eq!(cache.slots.len(), 1);
    }
}
