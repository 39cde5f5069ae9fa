//! Builds flattened device trees for tests (Devicetree Specification v0.4, 5).

/// A tree under construction: nodes are opened and closed, properties go to the innermost open one.
#[derive(Default)]
pub(super) struct TreeBuilder {
    reservations: Vec<(u64, u64)>,
    structure: Vec<u8>,
    strings: Vec<u8>,
}

/// The value of a property of these 32-bit cells.
pub(super) fn cells(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

/// The value of a property of these strings.
pub(super) fn text(values: &[&str]) -> Vec<u8> {
    values.iter().flat_map(|value| value.bytes().chain([0])).collect()
}

impl TreeBuilder {
    /// Adds to the memory reservation block.
    pub(super) fn reserve(&mut self, address: u64, size: u64) {
        self.reservations.extend([(address, size)]);
    }

    /// Adds a node with what `fill` puts into it. The root's name is empty.
    pub(super) fn node(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.open(name);
        fill(self);
        self.close();
    }

    /// Begins a node that [`Self::close`] ends.
    pub(super) fn open(&mut self, name: &str) {
        self.word(1);
        self.structure.extend(name.bytes().chain([0]));
        self.pad();
    }

    /// Ends the innermost open node.
    pub(super) fn close(&mut self) {
        self.word(2);
    }

    /// Adds a property to the node that is being filled. Properties come before child nodes.
    pub(super) fn property(&mut self, name: &str, value: &[u8]) {
        let offset = self.string(name);
        self.word(3);
        self.word(value.len() as u32);
        self.word(offset);
        self.structure.extend(value);
        self.pad();
    }

    /// The blob.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.word(9);
        self.reservations.extend([(0, 0)]);
        let reservations: Vec<u8> =
            self.reservations.iter().flat_map(|entry| [entry.0, entry.1]).flat_map(u64::to_be_bytes).collect();
        let structure_at = 40 + reservations.len();
        let strings_at = structure_at + self.structure.len();
        let total = strings_at + self.strings.len();
        let header =
            [0xd00d_feed, total, structure_at, strings_at, 40, 17, 16, 0, self.strings.len(), self.structure.len()];
        let mut blob = cells(&header.map(|word| word as u32));
        blob.extend(reservations);
        blob.extend(self.structure);
        blob.extend(self.strings);
        blob
    }

    fn word(&mut self, value: u32) {
        self.structure.extend(value.to_be_bytes());
    }

    fn pad(&mut self) {
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    fn string(&mut self, name: &str) -> u32 {
        let entry = text(&[name]);
        let known = self.strings.windows(entry.len()).position(|window| window == entry);
        known.unwrap_or_else(|| {
            self.strings.extend(&entry);
            self.strings.len() - entry.len()
        }) as u32
    }
}
