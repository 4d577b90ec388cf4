//! The zones in memory: what is known of each, and which one a position lies in.

use arrow::array::ArrayRef;
use geo::MultiPolygon;
use pipeline_engine::stage::StageError;
use rstar::RTree;

use super::Overlap;
use super::read;
use super::shape::{self, BoxOfPart, Part, Position};
use crate::transforms::tables::fetch::Content;
use crate::transforms::tables::follow::Loaded;
use crate::transforms::tables::read::Layout;

/// What the zones' table must hold: the columns to add, and behind them the shapes, unless it is GeoJSON.
pub(super) struct ZonesSpec {
    pub(super) layout: Layout,
    pub(super) is_geojson: bool,
    pub(super) overlap: Overlap,
}

/// Zones with valid shapes.
pub(super) struct Zones {
    /// Those to add, one row a zone.
    columns: Vec<ArrayRef>,
    parts: Vec<ZonePart>,
    /// The boxes around the parts.
    boxes: RTree<BoxOfPart>,
    zones: usize,
}

/// A polygon of a zone.
struct ZonePart {
    zone: u32,
    /// Of the zones at a position, the one with the lowest rank counts.
    rank: u32,
    part: Part,
}

impl Loaded for Zones {
    type Spec = ZonesSpec;

    fn load(spec: &ZonesSpec, content: Content) -> Result<Self, StageError> {
        let (columns, shapes) = read::zones(spec, content)?;
        let ranks = ranks(&shapes, spec.overlap);
        let (mut parts, mut boxes) = (Vec::new(), Vec::new());
        for ((zone, shape), rank) in (0..).zip(&shapes).zip(ranks) {
            for polygon in shape {
                let number = u32::try_from(parts.len()).map_err(|_| spec.layout.broken("it has 2^32 polygons"))?;
                boxes.extend(shape::box_of(polygon, number));
                parts.push(ZonePart { zone, rank, part: Part::of(polygon) });
            }
        }
        Ok(Self { columns, parts, boxes: RTree::bulk_load(boxes), zones: shapes.len() })
    }

    fn rows(&self) -> usize {
        self.zones
    }
}

/// The rank of each zone.
fn ranks(shapes: &[MultiPolygon<f64>], overlap: Overlap) -> Vec<u32> {
    let mut order: Vec<usize> = (0..shapes.len()).collect();
    if overlap == Overlap::Smallest {
        // To seven digits, or what is left of the sum would decide between squares of one size.
        let areas: Vec<f32> = shapes.iter().map(|shape| shape::area(shape) as f32).collect();
        // Stable: of zones of one size, the first counts.
        order.sort_by(|a, b| areas[*a].total_cmp(&areas[*b]));
    }
    let mut ranks = vec![0; shapes.len()];
    for (rank, zone) in (0..).zip(order) {
        ranks[zone] = rank;
    }
    ranks
}

impl Zones {
    pub(super) fn columns(&self) -> &[ArrayRef] {
        &self.columns
    }

    /// The zone that counts at a position, by its row.
    pub(super) fn find(&self, at: Position) -> Option<u32> {
        let around = self.boxes.locate_all_at_point(&[at.x, at.y]);
        let mut best: Option<&ZonePart> = None;
        for part in around.map(|found| &self.parts[found.data as usize]) {
            if best.is_none_or(|best| part.rank < best.rank) && part.part.covers(at) {
                best = Some(part);
            }
        }
        best.map(|part| part.zone)
    }
}
