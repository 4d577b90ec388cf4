//! From what the reading thread hands over to chunks of rows, in the order of the files.

use std::sync::Arc;

use pipeline_engine::stage::StageError;
use tokio::sync::mpsc;

use super::reader::{Chunk, Handing, Piece};
use crate::decode::{Decoder, Ordered};
use crate::sources::records::LineChunk;

/// Pieces that wait between the reading thread and the pipeline: one is always ready, and memory
/// stays at a few times the size of a chunk.
const PIECES_AHEAD: usize = 2;
/// Chunks of lines that wait to be filled again; what comes beyond is let go of.
const EMPTIED_MAX: usize = 2;

/// The chunks of a source's files.
pub(super) struct Chunks {
    pieces: mpsc::Receiver<Piece>,
    /// Whether the reading thread hands over nothing more.
    is_read: bool,
    decoding: Ordered<Chunk>,
    topic: Option<Arc<str>>,
    emptied: mpsc::Sender<LineChunk>,
}

impl Chunks {
    /// Those of what is handed over by the other end. To be called within a runtime.
    pub(super) fn new(decoder: Decoder, topic: Option<&str>) -> (Handing, Self) {
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let (emptied, to_fill) = mpsc::channel(EMPTIED_MAX);
        let (decoding, topic) = (Ordered::new(decoder), topic.map(Arc::from));
        (Handing { pieces: sender, emptied: to_fill }, Self { pieces, is_read: false, decoding, topic, emptied })
    }

    /// The next chunk, while pieces behind it begin to be decoded; `None` behind the last. Cancel safe.
    ///
    /// # Errors
    /// As for [`Ordered::next`].
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        while self.decoding.has_room() && !self.is_read {
            tokio::select! {
                biased;
                piece = self.pieces.recv() => match piece {
                    Some(piece) => self.begin(piece),
                    None => self.is_read = true,
                },
                chunk = self.decoding.next(), if !self.decoding.is_empty() => return chunk,
            }
        }
        self.decoding.next().await
    }

    fn begin(&mut self, piece: Piece) {
        match piece {
            // Behind lines of another file it waits its turn.
            Piece::Chunk(chunk) => self.decoding.begin(0, |_| chunk),
            Piece::Lines { file, span, received_at_us, lines } => {
                let (topic, emptied) = (self.topic.clone(), self.emptied.clone());
                self.decoding.begin(lines.bytes(), move |decoder| {
                    lines.decode(decoder, topic.as_deref(), received_at_us);
                    let decoded = decoder.take();
                    // Where it is not wanted, or the reading thread has ended, it is let go of.
                    drop(emptied.try_send(lines));
                    Chunk { file, span, received_at_us, decoded, marks: Vec::new() }
                });
            }
        }
    }
}
