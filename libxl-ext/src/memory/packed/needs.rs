//! Which blocks of which packs an image needs: in a section of their own, so that nothing else of it has to be read.

use super::BLOCK_PAGES;
use super::pieces::{get, get_count, put};
use nom::Parser;
use nom::bytes::complete::take;
use nom::combinator::{all_consuming, map};
use std::collections::BTreeSet;
use std::ops::Range;
use uuid::Uuid;

/// Numbers of blocks, as ranges in order that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks(Vec<Range<u64>>);

impl Blocks {
    /// Whether a block is among them.
    pub(super) fn contains(&self, block: u64) -> bool {
        self.range_of(block).is_some()
    }

    /// Whether all blocks of these pages are.
    pub(super) fn contain_pages(&self, first: u64, count: u64) -> bool {
        let per_block = BLOCK_PAGES as u64;
        let last = count
            .checked_sub(1)
            .and_then(|more| first.checked_add(more));
        last.is_some_and(|last| {
            self.range_of(first / per_block)
                .is_some_and(|range| range.contains(&(last / per_block)))
        })
    }

    /// One more than the last one, and so zero without any.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.end)
    }

    fn range_of(&self, block: u64) -> Option<&Range<u64>> {
        let after = self.0.partition_point(|range| range.start <= block);
        let range = self.0.get(after.checked_sub(1)?)?;
        range.contains(&block).then_some(range)
    }
}

impl FromIterator<u64> for Blocks {
    /// Of numbers in order.
    fn from_iter<I: IntoIterator<Item = u64>>(blocks: I) -> Self {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for block in blocks {
            match ranges.last_mut() {
                Some(last) if last.end == block => last.end += 1,
                _ => ranges.push(block..block + 1),
            }
        }
        Self(ranges)
    }
}

/// The packs of an image, in the order of their numbers in it.
pub(super) type Needs = Vec<(Uuid, Blocks)>;

/// What a section says of them: for each pack its identity, the number of ranges, and for each range the blocks that are
/// left out before it and those that are in it.
pub(super) fn encode(packs: &[(Uuid, BTreeSet<u64>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, blocks) in packs {
        let blocks: Blocks = blocks.iter().copied().collect();
        bytes.extend_from_slice(id.as_bytes());
        put(blocks.0.len() as u64, &mut bytes);
        let mut end = 0;
        for range in &blocks.0 {
            put(range.start - end, &mut bytes);
            put(range.end - range.start, &mut bytes);
            end = range.end;
        }
    }
    bytes
}

/// Reads such a section; `None` if it is none.
pub(super) fn decode(section: &[u8]) -> Option<Needs> {
    let pack = |input| -> nom::IResult<&[u8], (Uuid, Blocks)> {
        let (input, id) = map(take(16_usize), Uuid::from_slice).parse(input)?;
        let (mut input, count) = get_count(input)?;
        let invalid = || {
            nom::Err::Error(nom::error::make_error(
                section,
                nom::error::ErrorKind::Verify,
            ))
        };
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for _ in 0..count {
            let (rest, (gap, length)) = (get, get_count).parse(input)?;
            input = rest;
            let before = ranges.last().map_or(0, |range| range.end);
            let is_joined = gap == 0 && !ranges.is_empty();
            let start = before.checked_add(gap).filter(|_| !is_joined);
            let end = start.and_then(|start| start.checked_add(length));
            let (Some(start), Some(end)) = (start, end) else {
                return Err(invalid());
            };
            ranges.push(start..end);
        }
        let id = id.map_err(|_| invalid())?;
        Ok((input, (id, Blocks(ranges))))
    };
    let (_, needs) = all_consuming(nom::multi::many0(pack)).parse(section).ok()?;
    let distinct: BTreeSet<Uuid> = needs.iter().map(|(id, _)| *id).collect();
    (distinct.len() == needs.len()).then_some(needs)
}
