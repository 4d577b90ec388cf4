//! The shape of a zone: what is valid, how large it is, and whether a position lies in it.

use geo::algorithm::indexed::IntervalTreeMultiPolygon;
use geo::line_intersection::{LineIntersection, line_intersection};
use geo::orient::{Direction, Orient};
use geo::{BoundingRect, ChamberlainDuquetteArea, Contains, CoordsIter, Intersects, LinesIter};
use geo::{Coord, Line, LineString, MultiPolygon, Polygon};
use rstar::primitives::{GeomWithData, Rectangle};
use rstar::{AABB, RTree, RTreeObject};

/// Degrees: `x` is the longitude, `y` the latitude.
pub(super) type Position = Coord<f64>;

pub(super) const LATITUDE_MAX: f64 = 90.0;
pub(super) const LONGITUDE_MAX: f64 = 180.0;

/// From so many corners on, a polygon's own edges are indexed; below, looking at each costs less.
const CORNERS_INDEXED: usize = 64;

/// A position on Earth; `None` if there is none such.
pub(super) fn position(longitude: f64, latitude: f64) -> Option<Position> {
    // False for NaN as well.
    (longitude.abs() <= LONGITUDE_MAX && latitude.abs() <= LATITUDE_MAX).then_some(Coord { x: longitude, y: latitude })
}

/// Checks a zone's shape.
///
/// # Errors
/// What is wrong, and a way out.
pub(super) fn check(shape: &MultiPolygon<f64>) -> Result<(), (String, &'static str)> {
    if shape.0.is_empty() {
        return Err(("its shape is empty".to_owned(), "Leave the zone out."));
    }
    if let Some(corner) = shape.coords_iter().find(|corner| position(corner.x, corner.y).is_none()) {
        return Err((
            format!("longitude {}, latitude {} is nowhere on Earth", corner.x, corner.y),
            "Coordinates are the longitude and then the latitude, in degrees. A zone across the antimeridian is cut in two \
             there (a MultiPolygon).",
        ));
    }
    let mut rings = shape.iter().flat_map(|polygon| std::iter::once(polygon.exterior()).chain(polygon.interiors()));
    // The last corner is the first one again.
    if rings.any(|ring| ring.0.len() < 4) {
        return Err(("a ring of it has fewer than three corners".to_owned(), "An area has three at least."));
    }
    match crossing(shape) {
        Some(at) => Err((
            format!("its edges cross at longitude {}, latitude {}", at.x, at.y),
            "What is inside would be anybody's guess. A tool such as ST_MakeValid of PostGIS makes valid shapes.",
        )),
        None => Ok(()),
    }
}

/// Where two edges cross, be they of one ring or of two. To touch is no crossing.
///
/// By a tree of edges: the library's own validation looks at all pairs, which for the border of a country takes minutes.
fn crossing(shape: &MultiPolygon<f64>) -> Option<Position> {
    let edges: RTree<Line<f64>> = RTree::bulk_load(shape.lines_iter().collect());
    edges.iter().find_map(|edge| {
        let near = edges.locate_in_envelope_intersecting(&edge.envelope());
        near.filter_map(|other| line_intersection(*edge, *other)).find_map(|met| match met {
            LineIntersection::SinglePoint { intersection, is_proper: true } => Some(intersection),
            _ => None,
        })
    })
}

/// Square metres on the ground, holes left out.
pub(super) fn area(shape: &MultiPolygon<f64>) -> f64 {
    // Ring by ring: the library takes a hole of the opposite direction for a part of the polygon.
    let of_ring = |ring: &LineString<f64>| Polygon::new(ring.clone(), Vec::new()).chamberlain_duquette_unsigned_area();
    let of_polygon =
        |polygon: &Polygon<f64>| of_ring(polygon.exterior()) - polygon.interiors().iter().map(of_ring).sum::<f64>();
    shape.iter().map(of_polygon).sum()
}

/// A polygon of a zone, ready to be asked.
pub(super) enum Part {
    /// Of few corners.
    Small(Polygon<f64>),
    /// Of many corners: no question looks at all of them.
    Large { inside: IntervalTreeMultiPolygon<f64>, border: RTree<Line<f64>> },
}

impl Part {
    pub(super) fn of(polygon: &Polygon<f64>) -> Self {
        if polygon.coords_count() < CORNERS_INDEXED {
            return Self::Small(polygon.clone());
        }
        // The tree adds up how often each ring winds around a point: holes have to wind the other way.
        let oriented = MultiPolygon::from(polygon.orient(Direction::Default));
        let border = RTree::bulk_load(polygon.lines_iter().collect());
        Self::Large { inside: IntervalTreeMultiPolygon::new(&oriented), border }
    }

    /// Whether the position is inside or on the border.
    pub(super) fn covers(&self, at: Position) -> bool {
        match self {
            Self::Small(polygon) => polygon.intersects(&at),
            Self::Large { inside, border } => {
                inside.contains(&at)
                    || border
                        .locate_in_envelope_intersecting(&AABB::from_point(at.into()))
                        .any(|edge| edge.intersects(&at))
            }
        }
    }
}

/// A part's number by the box around it.
pub(super) type BoxOfPart = GeomWithData<Rectangle<[f64; 2]>, u32>;

/// The box around a polygon; `None` for one without corners.
pub(super) fn box_of(polygon: &Polygon<f64>, number: u32) -> Option<BoxOfPart> {
    let around = polygon.bounding_rect()?;
    let corners = Rectangle::from_corners([around.min().x, around.min().y], [around.max().x, around.max().y]);
    Some(BoxOfPart::new(corners, number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(corners: usize, radius: f64, is_clockwise: bool) -> LineString<f64> {
        let corner = |number: usize| {
            let angle = std::f64::consts::TAU * number as f64 / corners as f64;
            // A star, whose corners lie on two circles.
            let radius = if number.is_multiple_of(2) { radius } else { radius / 2.0 };
            let angle = if is_clockwise { -angle } else { angle };
            Coord { x: radius * angle.cos(), y: radius * angle.sin() }
        };
        let mut corners: Vec<_> = (0..corners).map(corner).collect();
        corners.push(corners[0]);
        LineString::new(corners)
    }

    proptest! {
        /// Whichever way its rings wind, an indexed polygon is that which looks at all of its edges, on its border too.
        #[test]
        fn a_large_polygon_is_asked_like_a_small_one(
            x in -12.0..12.0f64,
            y in -12.0..12.0f64,
            edge in 0..100usize,
            along in 0.0..1.0f64,
            is_clockwise: bool,
            is_hole_clockwise: bool,
        ) {
            let polygon = Polygon::new(ring(100, 10.0, is_clockwise), vec![ring(40, 4.0, is_hole_clockwise)]);
            prop_assert!(check(&polygon.clone().into()).is_ok());
            let part = Part::of(&polygon);
            let is_large = matches!(part, Part::Large { .. });
            prop_assert!(is_large);
            let line = polygon.lines_iter().nth(edge).unwrap();
            let near_border = line.start + line.delta() * along;
            for at in [Coord { x, y }, near_border, line.start] {
                prop_assert_eq!(part.covers(at), polygon.intersects(&at), "{:?}", at);
            }
            prop_assert!(part.covers(line.start));
        }
    }

    #[test]
    fn edges_may_touch_and_not_cross() {
        let shape = |text: &str| {
            let shape: MultiPolygon<f64> = wkt::TryFromWkt::try_from_wkt_str(text).unwrap();
            check(&shape).map_err(|(text, _)| text)
        };
        let good = [
            // A hole that touches the border in a corner, two parts that touch in a corner, and two that share an edge.
            "MULTIPOLYGON (((0 0, 4 0, 4 4, 0 4, 0 0), (0 2, 2 1, 2 3, 0 2)))",
            "MULTIPOLYGON (((0 0, 1 0, 1 1, 0 1, 0 0)), ((1 1, 2 1, 2 2, 1 2, 1 1)))",
            "MULTIPOLYGON (((0 0, 1 0, 1 1, 0 1, 0 0)), ((1 0, 2 0, 2 1, 1 1, 1 0)))",
        ];
        for text in good {
            assert_eq!(shape(text), Ok(()), "{text}");
        }
        let bad = [
            "MULTIPOLYGON (((0 0, 2 2, 2 0, 0 2, 0 0)))",
            "MULTIPOLYGON (((0 0, 4 4, 4 -1, 0 0), (0.5 1, 2 1, 2 0.7, 0.5 1)))",
            "MULTIPOLYGON (((-1 0, 1 0, 1 2, -1 2, -1 0)), ((0 1, 3 1, 3 3, 0 1)))",
        ];
        for text in bad {
            let told = shape(text).expect_err(text);
            assert!(told.starts_with("its edges cross at longitude "), "{told}");
        }
    }

    #[test]
    fn an_area_leaves_out_holes_whichever_way_they_wind() {
        let square = |size: f64, is_clockwise: bool| {
            let mut corners = vec![(0.0, 0.0), (size, 0.0), (size, size), (0.0, size), (0.0, 0.0)];
            if is_clockwise {
                corners.reverse();
            }
            LineString::from(corners)
        };
        // A degree at the equator is 111.3 km.
        let whole = area(&Polygon::new(square(1.0, false), Vec::new()).into());
        assert!((whole / 1e6 - 111.3 * 111.3).abs() < 50.0, "{whole}");
        let hole = area(&Polygon::new(square(0.5, false), Vec::new()).into());
        for is_clockwise in [false, true] {
            let with_hole = area(&Polygon::new(square(1.0, false), vec![square(0.5, is_clockwise)]).into());
            assert!((with_hole - (whole - hole)).abs() < 1.0, "{with_hole}");
        }
    }
}
