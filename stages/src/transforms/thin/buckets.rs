//! Which rows of a bucket of time stay, for the methods with a number.

use super::held::{HeldRows, Slot};

/// Marks the rows of a bucket that stay by `lttb`: of each column so many values, and the bucket's ends.
pub(super) fn largest_triangles(bucket: &[Slot], points: usize, held: &HeldRows) -> Vec<bool> {
    let start_us = bucket.first().map_or(0, |first| held.time_us(*first));
    marked(bucket, held, |series| {
        let point = |place: &usize| {
            let slot = bucket[*place];
            ((held.time_us(slot) - start_us) as f64, held.values(slot)[series.column])
        };
        lttb(&series.places.iter().map(point).collect::<Vec<_>>(), points)
    })
}

/// Marks those that stay by `min_max`: of each column the first, least, greatest and last value, and the bucket's ends.
pub(super) fn extremes(bucket: &[Slot], held: &HeldRows) -> Vec<bool> {
    marked(bucket, held, |series| {
        let value = |at: usize| held.values(bucket[series.places[at]])[series.column];
        let last = series.places.len() - 1;
        let mut least_and_greatest = (0, 0);
        for at in 1..=last {
            if value(at) < value(least_and_greatest.0) {
                least_and_greatest.0 = at;
            }
            if value(at) > value(least_and_greatest.1) {
                least_and_greatest.1 = at;
            }
        }
        vec![0, least_and_greatest.0, least_and_greatest.1, last]
    })
}

/// The rows of a bucket that have a value of one column.
struct ColumnOfBucket {
    column: usize,
    /// Where they are in the bucket; at least one.
    places: Vec<usize>,
}

/// The bucket's ends, and what `chosen` chooses of each column, by its place among those that have a value.
fn marked(bucket: &[Slot], held: &HeldRows, chosen: impl Fn(&ColumnOfBucket) -> Vec<usize>) -> Vec<bool> {
    let mut stays = vec![false; bucket.len()];
    for end in [0, bucket.len().saturating_sub(1)] {
        stays.get_mut(end).into_iter().for_each(|end| *end = true);
    }
    for column in 0..held.columns() {
        let has_value = |at: &usize| !held.values(bucket[*at])[column].is_nan();
        let places: Vec<usize> = (0..bucket.len()).filter(has_value).collect();
        if places.is_empty() {
            continue;
        }
        let series = ColumnOfBucket { column, places };
        chosen(&series).into_iter().for_each(|at| stays[series.places[at]] = true);
    }
    stays
}

/// Largest triangle three buckets (Sveinn Steinarsson, 2013): the places of `count` of the points, three or more, in
/// order. The first and the last stay; the rest is cut into equal parts, and each gives the point that spans the
/// largest triangle with the one chosen before and the mean of the part after it.
fn lttb(points: &[(f64, f64)], count: usize) -> Vec<usize> {
    if points.len() <= count {
        return (0..points.len()).collect();
    }
    // Whole numbers: nothing depends on rounding.
    let start_of = |part: usize| part * (points.len() - 2) / (count - 2) + 1;
    let mut chosen = vec![0];
    let mut before = 0;
    for part in 0..count - 2 {
        let (from, until) = (start_of(part), start_of(part + 1));
        let after = &points[until..start_of(part + 2).min(points.len())];
        let sum = after.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        let mean = (sum.0 / after.len() as f64, sum.1 / after.len() as f64);
        let (mut best, mut largest) = (from, -1.0);
        for at in from..until {
            let (a, b) = (points[before], points[at]);
            let area = ((a.0 - mean.0) * (b.1 - a.1) - (a.0 - b.0) * (mean.1 - a.1)).abs();
            if area > largest {
                (best, largest) = (at, area);
            }
        }
        chosen.push(best);
        before = best;
    }
    chosen.push(points.len() - 1);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_each_part_stays() {
        let points: Vec<(f64, f64)> =
            [0.0, 0.1, 5.0, 0.2, 0.1, -4.0, 0.3, 0.1].iter().enumerate().map(|(x, y)| (x as f64, *y)).collect();
        assert_eq!(lttb(&points, 4), [0, 2, 5, 7]);
        assert_eq!(lttb(&points, 3), [0, 2, 7], "the one that is farthest from the line between the ends");
        assert_eq!(lttb(&points, 8), (0..8).collect::<Vec<_>>());
        assert_eq!(lttb(&points[..1], 3), [0]);
    }

    #[test]
    fn of_equals_the_first_stays() {
        let flat: Vec<(f64, f64)> = (0..10).map(|x| (f64::from(x), 1.0)).collect();
        assert_eq!(lttb(&flat, 4), [0, 1, 5, 9]);
    }
}
