//! What two versions of a projection differ in.
//!
//! Both are written in the same transactions, so that one statement which reads from both sees them
//! at one checkpoint. Rows are read by key, a page of each version at a time, and never all of them.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ReadModels;
use super::db::{Query, ReadDb, ReadError, Row, table_of};
use super::view::Shape;

/// Which version a row is of; a number of the same size in both databases.
const SIDES: [&str; 2] = ["SELECT CAST(0 AS BIGINT) AS side", "SELECT CAST(1 AS BIGINT) AS side"];
/// Rows of each version in one statement.
const PAGE: usize = 1_000;
/// Differing rows that a report spells out.
const SAMPLE_MAX: usize = 100;

/// A row that is not the same in both versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RowDifference {
    /// The table, as version 1 calls it.
    pub table: String,
    /// The row's key: an id, or partition and number.
    pub key: Vec<String>,
    /// `only_serving`, `only_beside` or `differs`.
    pub kind: &'static str,
    /// The columns that differ.
    pub columns: Vec<&'static str>,
}

/// What was found in the rows that were compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Difference {
    /// Rows of the version that serves.
    pub serving_rows: u64,
    /// Rows of the one beside it.
    pub beside_rows: u64,
    /// Rows that both have and that differ.
    pub differing: u64,
    /// Rows that only the one that serves has.
    pub only_serving: u64,
    /// Rows that only the one beside it has.
    pub only_beside: u64,
    /// The first hundred of them.
    pub sample: Vec<RowDifference>,
}

/// Where a comparison goes on: which table, behind which key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    table: usize,
    behind: Vec<String>,
}

impl ReadModels {
    /// Compares about `limit` rows of the version that serves with the one beside it. Returns what
    /// it found there, and where the next call goes on, unless that was all. An unknown projection
    /// has nothing to compare.
    pub async fn diff(
        &self,
        projection: &str,
        beside: u32,
        from: Option<Place>,
        limit: u64,
    ) -> Result<(Difference, Option<Place>), ReadError> {
        let (mut found, mut place) = (Difference::default(), from.unwrap_or_default());
        let known = self.projections.iter().find(|of| of.name() == projection);
        let shapes = known.map_or(&[][..], |of| of.shapes());
        let serving = self.db.serving(projection);
        while let Some(shape) = shapes.get(place.table) {
            if found.serving_rows + found.beside_rows >= limit {
                return Ok((found, Some(place)));
            }
            match page(&self.db, shape, (serving, beside), &place.behind, &mut found).await? {
                Some(behind) => place.behind = behind,
                None => place = Place { table: place.table + 1, behind: Vec::new() },
            }
        }
        Ok((found, None))
    }
}

/// A row as text: a value is the same in both versions exactly when its text is.
type Values = Vec<Option<String>>;

/// Compares the rows behind a key; returns the key to go on behind.
async fn page(
    db: &ReadDb,
    shape: &Shape,
    (serving, beside): (u32, u32),
    behind: &[String],
    found: &mut Difference,
) -> Result<Option<Vec<String>>, ReadError> {
    let tables = [table_of(shape.table, serving), table_of(shape.table, beside)];
    let rows = db.fetch_as(both(shape, &tables, behind), |row| read(row, shape)).await?;
    let (left, right): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(side, _)| *side == 0);
    let strip = |rows: Vec<(i64, Values)>| rows.into_iter().map(|(_, values)| values);
    let (mut left, mut right): (Vec<_>, Vec<_>) = (strip(left).collect(), strip(right).collect());
    // What is behind the end of a full page may be in the next page of the other.
    let end = |rows: &[Values]| {
        (rows.len() == PAGE).then(|| rows.last().map(|row| key(shape, row))).flatten()
    };
    let bound = match (end(&left), end(&right)) {
        (Some(left), Some(right)) => {
            Some(if compare(shape, &left, &right).is_lt() { left } else { right })
        }
        (left, right) => left.or(right),
    };
    if let Some(bound) = &bound {
        left.retain(|row| compare(shape, &key(shape, row), bound).is_le());
        right.retain(|row| compare(shape, &key(shape, row), bound).is_le());
    }
    merge(shape, &left, &right, found);
    Ok(bound)
}

/// Reads a page of each of two tables in one statement.
fn both(shape: &Shape, tables: &[String; 2], behind: &[String]) -> Query {
    let keys: Vec<_> = shape.columns[..shape.key].to_vec();
    let mut query = Query::new("SELECT * FROM (");
    for (side, table) in tables.iter().enumerate() {
        if side > 0 {
            query = query.then(") AS serving UNION ALL SELECT * FROM (");
        }
        query = query.then(if side == 0 { SIDES[0] } else { SIDES[1] });
        for column in shape.columns {
            query = query.then(", CAST(").then(column).then(" AS TEXT)");
        }
        query = query.then(" FROM ").table(table).then(" AS r");
        if !behind.is_empty() {
            query = list(query.then(" WHERE ("), &keys).then(") > (");
            for (index, part) in behind.iter().enumerate() {
                query = if index > 0 { query.then(", ") } else { query };
                query = match (shape.is_numbered, part.parse::<i64>()) {
                    (true, Ok(number)) => query.value(number),
                    _ => query.value(part),
                };
            }
            query = query.then(")");
        }
        query = list(query.then(" ORDER BY "), &keys);
        query = query.then(" LIMIT ").value(u32::try_from(PAGE).unwrap_or(u32::MAX));
    }
    query.then(") AS beside")
}

fn list(query: Query, columns: &[&'static str]) -> Query {
    columns.iter().enumerate().fold(query, |query, (index, column)| {
        // The column, and not the text that it is read as.
        query.then(if index > 0 { ", r." } else { "r." }).then(column)
    })
}

fn read(row: &Row, shape: &Shape) -> Result<(i64, Values), ReadError> {
    let values = (1..=shape.columns.len()).map(|column| row.text_or_null(column));
    Ok((row.int(0)?, values.collect::<Result<_, _>>()?))
}

fn key(shape: &Shape, row: &Values) -> Vec<String> {
    row[..shape.key].iter().map(|part| part.clone().unwrap_or_default()).collect()
}

/// The order that the database has keys in.
fn compare(shape: &Shape, left: &[String], right: &[String]) -> Ordering {
    if !shape.is_numbered {
        return left.cmp(right);
    }
    let numbers = |key: &[String]| -> Vec<i64> {
        key.iter().map(|part| part.parse().unwrap_or(i64::MIN)).collect()
    };
    numbers(left).cmp(&numbers(right))
}

/// Goes through two pages of the same stretch side by side.
fn merge(shape: &Shape, left: &[Values], right: &[Values], found: &mut Difference) {
    found.serving_rows += left.len() as u64;
    found.beside_rows += right.len() as u64;
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => compare(shape, &key(shape, left), &key(shape, right)),
        };
        let (serving, beside) = match order {
            Ordering::Less => (left.next(), None),
            Ordering::Greater => (None, right.next()),
            Ordering::Equal => (left.next(), right.next()),
        };
        if serving != beside {
            found.note(shape, serving, beside);
        }
    }
}

impl Difference {
    fn note(&mut self, shape: &Shape, serving: Option<&Values>, beside: Option<&Values>) {
        let (kind, count) = match (serving, beside) {
            (Some(_), None) => ("only_serving", &mut self.only_serving),
            (None, _) => ("only_beside", &mut self.only_beside),
            (Some(_), Some(_)) => ("differs", &mut self.differing),
        };
        *count += 1;
        let Some(row) = serving.or(beside).filter(|_| self.sample.len() < SAMPLE_MAX) else {
            return;
        };
        let columns = match (serving, beside) {
            (Some(serving), Some(beside)) => {
                let pairs = shape.columns.iter().zip(serving.iter().zip(beside));
                pairs.filter(|(_, (one, other))| one != other).map(|(name, _)| *name).collect()
            }
            _ => Vec::new(),
        };
        let table = shape.table.to_owned();
        self.sample.push(RowDifference { table, key: key(shape, row), kind, columns });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { table: "t", columns: &["a", "b", "c"], key: 2, is_numbered: true };

    fn row(a: u64, b: u64, c: &str) -> Values {
        vec![Some(a.to_string()), Some(b.to_string()), Some(c.to_owned())]
    }

    #[test]
    fn rows_are_compared_by_key_and_counted() {
        let left = [row(0, 2, "x"), row(0, 10, "y"), row(1, 1, "z")];
        let right = [row(0, 2, "x"), row(0, 9, "y"), row(1, 1, "w")];
        let mut found = Difference::default();
        merge(&SHAPE, &left, &right, &mut found);
        assert_eq!((found.serving_rows, found.beside_rows), (3, 3));
        assert_eq!((found.only_serving, found.only_beside, found.differing), (1, 1, 1));
        let kinds: Vec<_> = found.sample.iter().map(|of| (of.kind, of.key[1].as_str())).collect();
        assert_eq!(kinds, [("only_beside", "9"), ("only_serving", "10"), ("differs", "1")]);
        assert_eq!(found.sample[2].columns, ["c"]);
    }
}
