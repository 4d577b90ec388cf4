//! Workers' lines to one store: each request can go wrong in the ways that it does outside.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tokio::sync::Notify;

use super::*;

/// What becomes of a worker's requests, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Trouble {
    None,
    /// The process ends before this one is sent.
    EndsBefore(u64),
    /// The process ends when this one is carried out, and not answered.
    EndsAfter(u64),
    /// This one is refused.
    Refuses(u64),
    /// The answer to this one is lost.
    LosesAnswer(u64),
    /// The process is stopped before this one is sent, until it is woken.
    Pauses(u64),
    /// Each takes a while, and one of so many is refused, and the answer to another lost.
    Any {
        one_of: u32,
        seed: u64,
    },
}

/// One worker's line. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Line(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    store: Arc<InMemory>,
    trouble: Trouble,
    requests: AtomicU64,
    chance: Mutex<Pcg64Mcg>,
    paused: Notify,
    woken: Notify,
}

impl Line {
    pub(super) fn to(store: &Arc<InMemory>, trouble: Trouble) -> Self {
        let seed = if let Trouble::Any { seed, .. } = trouble { seed } else { 0 };
        Self(Arc::new(Inside {
            store: store.clone(),
            trouble,
            requests: AtomicU64::new(0),
            chance: Mutex::new(Pcg64Mcg::seed_from_u64(seed)),
            paused: Notify::new(),
            woken: Notify::new(),
        }))
    }

    pub(super) fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// Whether the process has ended.
    pub(super) fn has_ended(&self) -> bool {
        match self.0.trouble {
            Trouble::EndsBefore(last) | Trouble::EndsAfter(last) => self.requests() >= last,
            _ => false,
        }
    }

    /// Resolves once the worker is stopped.
    pub(super) async fn paused(&self) {
        self.0.paused.notified().await;
    }

    pub(super) fn wake(&self) {
        self.0.woken.notify_one();
    }

    /// Sends a request, unless it goes wrong before.
    async fn send<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
        let failed = |text: &str| Err(Error::Generic { store: "S3", source: text.into() });
        let number = self.0.requests.fetch_add(1, Ordering::Relaxed) + 1;
        match self.0.trouble {
            Trouble::EndsBefore(last) if number >= last => return failed("ended"),
            Trouble::EndsAfter(last) if number > last => return failed("ended"),
            Trouble::Refuses(this) if number == this => return failed("refused"),
            Trouble::Pauses(this) if number == this => {
                self.0.paused.notify_one();
                self.0.woken.notified().await;
            }
            Trouble::Any { one_of, .. } => {
                let (turns, fate) = {
                    let mut chance = self.0.chance.lock().unwrap();
                    (chance.random_range(0..20), chance.random_range(0..one_of))
                };
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                if fate == 0 {
                    return failed("refused");
                }
                let answer = request.await;
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                return if fate == 1 { failed("the answer was lost") } else { answer };
            }
            _ => {}
        }
        let answer = request.await;
        match self.0.trouble {
            Trouble::EndsAfter(last) if number == last => failed("ended"),
            Trouble::LosesAnswer(this) if number == this => failed("the answer was lost"),
            _ => answer,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

#[async_trait]
impl ObjectStore for Line {
    async fn put_opts(&self, at: &Location, content: PutPayload, how: PutOptions) -> object_store::Result<PutResult> {
        self.send(self.0.store.put_opts(at, content, how)).await
    }

    async fn get_opts(&self, at: &Location, how: GetOptions) -> object_store::Result<GetResult> {
        self.send(self.0.store.get_opts(at, how)).await
    }

    async fn put_multipart_opts(
        &self,
        _: &Location,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        unimplemented!("the sink writes each object at once")
    }

    fn delete_stream(
        &self,
        all: BoxStream<'static, object_store::Result<Location>>,
    ) -> BoxStream<'static, object_store::Result<Location>> {
        let line = self.clone();
        let delete = move |at: object_store::Result<Location>| {
            let line = line.clone();
            async move {
                let at = at?;
                line.send(line.0.store.delete(&at)).await.map(|()| at)
            }
        };
        all.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let (line, listed) = (self.clone(), self.0.store.list(prefix));
        let request = async move { line.send(async { Ok(()) }).await };
        futures::stream::once(request)
            .flat_map(|sent| match sent {
                Ok(()) => futures::stream::empty().boxed(),
                Err(error) => futures::stream::once(async { Err(error) }).boxed(),
            })
            .chain(listed)
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> object_store::Result<ListResult> {
        self.0.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Location, to: &Location, how: CopyOptions) -> object_store::Result<()> {
        self.0.store.copy_opts(from, to, how).await
    }
}
