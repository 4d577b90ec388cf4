//! The order in which records are put: `PutRecords` may take some records of a request and not others, so a request never
//! holds two of one lane, and a lane goes on once its first record is taken.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

/// A request takes so many records.
const REQUEST_RECORDS_MAX: usize = 500;
/// A request takes so much, with its keys: 5 MiB, less what they are called in it.
const REQUEST_BYTES_MAX: usize = (5 << 20) - (64 << 10);

/// A record as the stream is given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) partition_key: String,
    /// What decides the shard, in place of the key's own hash.
    pub(super) explicit_hash_key: Option<String>,
    pub(super) data: Bytes,
}

impl Entry {
    /// Records of one lane stay in order: those of a key, or those of what stands in for its hash.
    fn lane(&self) -> &str {
        self.explicit_hash_key.as_deref().unwrap_or(&self.partition_key)
    }

    fn bytes(&self) -> usize {
        self.data.len() + self.partition_key.len() + self.explicit_hash_key.as_ref().map_or(0, String::len)
    }
}

/// Records that are not put yet, by lane.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Vec<VecDeque<Entry>>,
    /// Lanes that hold records, in the order in which they have their turn.
    turns: VecDeque<usize>,
}

/// Records that are put together, one of each lane.
#[derive(Debug)]
pub(super) struct Request {
    records: Vec<(usize, Entry)>,
}

impl Request {
    pub(super) fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.records.iter().map(|(_, entry)| entry)
    }
}

impl Lanes {
    /// All of these are to be put, in this order within each lane.
    pub(super) fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut by_lane: HashMap<String, usize> = HashMap::new();
        let mut lanes: Vec<VecDeque<Entry>> = Vec::new();
        for entry in entries {
            let lane = match by_lane.get(entry.lane()) {
                Some(lane) => *lane,
                None => {
                    by_lane.insert(entry.lane().to_owned(), lanes.len());
                    lanes.push(VecDeque::new());
                    lanes.len() - 1
                }
            };
            lanes[lane].push_back(entry);
        }
        Self { turns: (0..lanes.len()).collect(), lanes }
    }

    /// The next records to put; `None` when all are. To be given back to [`Lanes::settle`].
    pub(super) fn next(&mut self) -> Option<Request> {
        let mut records = Vec::new();
        let mut bytes = 0;
        while records.len() < REQUEST_RECORDS_MAX {
            let Some(lane) = self.turns.pop_front() else { break };
            let fits = |entry: &mut Entry| bytes + entry.bytes() <= REQUEST_BYTES_MAX;
            match self.lanes[lane].pop_front_if(fits) {
                Some(entry) => {
                    bytes += entry.bytes();
                    records.push((lane, entry));
                }
                None => {
                    self.turns.push_front(lane);
                    break;
                }
            }
        }
        (!records.is_empty()).then_some(Request { records })
    }

    /// What became of a request, record by record: what was not taken is put again before all others of its lane.
    pub(super) fn settle(&mut self, request: Request, taken: impl Fn(usize) -> bool) {
        let mut first = Vec::new();
        for (index, (lane, entry)) in request.records.into_iter().enumerate() {
            if !taken(index) {
                self.lanes[lane].push_front(entry);
                first.push(lane);
            } else if !self.lanes[lane].is_empty() {
                self.turns.push_back(lane);
            }
        }
        first.into_iter().rev().for_each(|lane| self.turns.push_front(lane));
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn entry(key: usize, number: usize, bytes: usize) -> Entry {
        let mut data = number.to_string().into_bytes();
        data.resize(data.len().max(bytes), b' ');
        let data = data.into();
        Entry { partition_key: format!("k{key}"), explicit_hash_key: None, data }
    }

    fn put_all(lanes: &mut Lanes, mut taken: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
        let mut put = Vec::new();
        while let Some(request) = lanes.next() {
            assert!(request.entries().len() <= REQUEST_RECORDS_MAX);
            assert!(request.entries().map(Entry::bytes).sum::<usize>() <= REQUEST_BYTES_MAX);
            let verdicts: Vec<bool> = request.entries().map(&mut taken).collect();
            put.extend(request.entries().zip(&verdicts).filter(|(_, taken)| **taken).map(|(entry, _)| entry.clone()));
            lanes.settle(request, |index| verdicts[index]);
        }
        put
    }

    #[test]
    fn whatever_is_taken_or_not_every_record_is_put_once_and_in_the_order_of_its_key() {
        for seed in 0..20 {
            let mut chance = StdRng::seed_from_u64(seed);
            let keys = chance.random_range(1..700);
            let all: Vec<Entry> = (0..2000).map(|number| entry(chance.random_range(0..keys), number, 1)).collect();
            let put = put_all(&mut Lanes::new(all.clone()), |_| chance.random_bool(0.7));
            assert_eq!(put.len(), all.len());
            assert_eq!(by_key(&put), by_key(&all), "seed {seed}");
        }
    }

    /// The records of each key, in their order.
    fn by_key(entries: &[Entry]) -> HashMap<&str, Vec<&Bytes>> {
        let mut by_key: HashMap<&str, Vec<&Bytes>> = HashMap::new();
        entries.iter().for_each(|entry| by_key.entry(&entry.partition_key).or_default().push(&entry.data));
        by_key
    }

    #[test]
    fn large_records_go_out_in_several_requests() {
        let all: Vec<Entry> = (0..12).map(|key| entry(key, key, 1 << 20)).collect();
        let mut requests = 0;
        let mut lanes = Lanes::new(all);
        while let Some(request) = lanes.next() {
            requests += 1;
            assert!(request.entries().len() <= 4);
            lanes.settle(request, |_| true);
        }
        assert_eq!(requests, 3);
    }
}
