//! Batches decoded on several cores at once, handed on in the order in which they came.
//!
//! Decoding is most of what a busy source costs, and nothing in it depends on the batch before: so a few batches are decoded
//! by tasks of their own, each with a decoder of its own, while the source reads on. What leaves is the same, row by row
//! and batch by batch, as if one decoder had done it all: where a batch ends is the source's word, and no batch
//! overtakes another.
//!
//! Where there is one core, and for batches too small to be worth another task, the source's task decodes as it goes: then
//! nothing is slower or later than without.
//!
//! # Memory
//! At most [`Ordered::WIDTH_MAX`] batches are in flight, begun and not handed on, each with its payloads and its rows.

use std::collections::VecDeque;

use pipeline_engine::stage::StageError;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use super::Decoder;

/// Below it a batch is decoded at once: waking another task costs some microseconds, decoding so much about 150.
const APART_BYTES_MIN: usize = 64 << 10;

/// Batches on their way through several decoders. `T` is what becomes of one.
#[derive(Debug)]
pub struct Ordered<T> {
    decoder: Decoder,
    /// Twins of it that rest.
    twins: Vec<Decoder>,
    width: usize,
    /// In the order in which they were begun.
    begun: VecDeque<Batch<T>>,
}

#[derive(Debug)]
enum Batch<T> {
    Decoded(T),
    Apart(AbortOnDropHandle<(Decoder, T)>),
}

impl<T: Send + 'static> Ordered<T> {
    /// Most of the batches in flight: behind four decoders it is some other stage that is waited for.
    pub const WIDTH_MAX: usize = 4;

    /// Decodes on as many cores as the runtime has. To be called within one.
    pub fn new(decoder: Decoder) -> Self {
        Self { decoder, twins: Vec::new(), width: width(), begun: VecDeque::new() }
    }

    /// Whether another batch may begin before one is handed on.
    pub fn has_room(&self) -> bool {
        self.begun.len() < self.width
    }

    /// Whether nothing has begun that is not handed on.
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }

    /// Begins to decode a batch of so many bytes of payload. `decode` is given a decoder that holds nothing, and has to take
    /// out of it all that it puts in.
    pub fn begin(&mut self, bytes: usize, decode: impl FnOnce(&mut Decoder) -> T + Send + 'static) {
        if self.width == 1 || bytes < APART_BYTES_MIN {
            self.begun.push_back(Batch::Decoded(decode(&mut self.decoder)));
            return;
        }
        let mut decoder = self.twins.pop().unwrap_or_else(|| self.decoder.twin());
        let decoding = tokio::spawn(async move {
            let decoded = decode(&mut decoder);
            (decoder, decoded)
        });
        self.begun.push_back(Batch::Apart(AbortOnDropHandle::new(decoding)));
    }

    /// What became of the batch that was begun first, once it is decoded; `None` where none is in flight. Cancel safe.
    ///
    /// # Errors
    /// The decoder has panicked.
    pub async fn next(&mut self) -> Result<Option<T>, StageError> {
        let apart = match self.begun.front_mut() {
            Some(Batch::Apart(decoding)) => Some(decoding.await),
            _ => None,
        };
        match (apart, self.begun.pop_front()) {
            (Some(outcome), _) => {
                let (decoder, decoded) =
                    outcome.map_err(|panic| StageError::bug("decoding a batch panicked").because(panic))?;
                self.twins.push(decoder);
                Ok(Some(decoded))
            }
            (None, Some(Batch::Decoded(decoded))) => Ok(Some(decoded)),
            (None, _) => Ok(None),
        }
    }
}

/// How many batches of a source are in flight on this runtime; one: it decodes where it stands. To be called within a runtime.
pub(crate) fn width() -> usize {
    match Handle::current().metrics().num_workers() {
        1 => 1,
        // One more than there are threads, so that none of them waits while the first batch is handed on.
        workers => (workers + 1).min(Ordered::<()>::WIDTH_MAX),
    }
}
