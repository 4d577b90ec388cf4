//! Pages of a Parquet file of strangers, unpacked within bounds.
//!
//! The library unpacks a page as far as it goes before it looks whether that is what was announced: some kilobytes of zstd can be
//! gigabytes. So it is told that nothing is packed, and what it reads is unpacked here.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::basic::Compression;
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::serialized_reader::SerializedPageReader;

/// A page is in memory as a whole. Writers end one after some hundred kilobytes, and the largest that is known makes 100 MB.
const PAGE_BYTES_MAX: u64 = 256 << 20;
/// A value of a dictionary may stand in every row. Writers give a dictionary up after some megabytes.
const DICTIONARY_BYTES_MAX: u64 = 16 << 20;

/// The row groups of a file.
pub(super) struct BoundedGroups {
    file: Arc<File>,
    metadata: Arc<ParquetMetaData>,
    /// What the pages to come may unpack to, of all columns together.
    left: Arc<AtomicU64>,
}

impl BoundedGroups {
    pub(super) fn new(file: File, metadata: Arc<ParquetMetaData>, bytes_max: u64) -> Self {
        Self { file: Arc::new(file), metadata, left: Arc::new(AtomicU64::new(bytes_max)) }
    }

    fn pages(&self, group: &RowGroupMetaData, column: usize) -> Result<Box<dyn PageReader>> {
        let chunk = group.column(column);
        let codec = chunk.compression();
        let as_it_is = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        let rows = usize::try_from(group.num_rows())?;
        let pages = SerializedPageReader::new(self.file.clone(), &as_it_is, rows, None)?;
        Ok(Box::new(BoundedPages { pages, codec, left: self.left.clone() }))
    }
}

impl RowGroups for BoundedGroups {
    fn num_rows(&self) -> usize {
        usize::try_from(self.metadata.file_metadata().num_rows()).unwrap_or(0)
    }

    fn column_chunks(&self, column: usize) -> Result<Box<dyn PageIterator>> {
        let groups = self.metadata.row_groups().iter();
        let chunks: Vec<_> = groups.map(|group| self.pages(group, column)).collect();
        Ok(Box::new(Chunks(chunks.into_iter())))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(self.metadata.row_groups().iter())
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

/// A column's pages, by row group.
struct Chunks(std::vec::IntoIter<Result<Box<dyn PageReader>>>);

impl Iterator for Chunks {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl PageIterator for Chunks {}

struct BoundedPages {
    /// Pages that are still packed.
    pages: SerializedPageReader<File>,
    codec: Compression,
    left: Arc<AtomicU64>,
}

impl BoundedPages {
    fn unpack(&self, packed: Bytes, bytes_max: u64) -> Result<Bytes> {
        let max = bytes_max.min(self.left.load(Relaxed));
        let unpacked: Bytes = match self.codec {
            Compression::UNCOMPRESSED => packed,
            // Nothing was packed, where all values are null.
            _ if packed.is_empty() => packed,
            Compression::ZSTD(_) => {
                let mut unpacked = Vec::new();
                let decoder = zstd::stream::read::Decoder::with_buffer(&packed[..]).map_err(damaged)?;
                decoder.take(max.saturating_add(1)).read_to_end(&mut unpacked).map_err(damaged)?;
                unpacked.into()
            }
            Compression::SNAPPY => {
                // It says at its beginning how much it is, and is refused if that is not true.
                let length = snap::raw::decompress_len(&packed).map_err(damaged)?;
                if length as u64 > max {
                    return Err(too_large());
                }
                snap::raw::Decoder::new().decompress_vec(&packed).map_err(damaged)?.into()
            }
            other => return Err(ParquetError::NYI(format!("pages packed as {other:?} are not read"))),
        };
        let length = unpacked.len() as u64;
        if length > max {
            return Err(too_large());
        }
        // One thread reads a file.
        self.left.fetch_sub(length, Relaxed);
        Ok(unpacked)
    }

    fn unpacked(&self, page: Page) -> Result<Page> {
        Ok(match page {
            Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, statistics } => {
                let buf = self.unpack(buf, PAGE_BYTES_MAX)?;
                Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, statistics }
            }
            Page::DictionaryPage { buf, num_values, encoding, is_sorted } => {
                let buf = self.unpack(buf, DICTIONARY_BYTES_MAX)?;
                Page::DictionaryPage { buf, num_values, encoding, is_sorted }
            }
            Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                num_nulls,
                num_rows,
                def_levels_byte_len,
                rep_levels_byte_len,
                is_compressed,
                statistics,
            } => {
                // Its levels are never packed.
                let levels = def_levels_byte_len as usize + rep_levels_byte_len as usize;
                let buf = if is_compressed && self.codec != Compression::UNCOMPRESSED {
                    if levels > buf.len() {
                        return Err(damaged("a page is shorter than its levels"));
                    }
                    let values = self.unpack(buf.slice(levels..), PAGE_BYTES_MAX)?;
                    [&buf[..levels], &values].concat().into()
                } else {
                    buf
                };
                Page::DataPageV2 {
                    buf,
                    num_values,
                    encoding,
                    num_nulls,
                    num_rows,
                    def_levels_byte_len,
                    rep_levels_byte_len,
                    is_compressed: false,
                    statistics,
                }
            }
        })
    }
}

impl Iterator for BoundedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for BoundedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.pages.get_next_page()?.map(|page| self.unpacked(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

/// What a page says that unpacks to more than it may.
#[derive(Debug, thiserror::Error)]
#[error("a page unpacks to more than it may")]
pub(super) struct PageTooLarge;

fn too_large() -> ParquetError {
    ParquetError::External(Box::new(PageTooLarge))
}

fn damaged(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ParquetError {
    ParquetError::External(error.into())
}
