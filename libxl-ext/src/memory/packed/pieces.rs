//! What an image is made of, in the order of the stream: bytes as they are, numbers of pages, zeros, pages of packs.
//!
//! | tag | then | what it becomes |
//! |---|---|---|
//! | 0 | length, so many bytes | these |
//! | 1 | first, count | numbers of eight bytes, little endian, each one more than the last |
//! | 2 | count | so many pages of zeros |
//! | 3 | pack, first, count | so many pages of a pack, one after the other |
//!
//! Lengths, counts and numbers have seven bits in each byte, the lowest first, and bit 7 in each but the last; never
//! longer than needed. None of lengths and counts is zero.

use super::PAGE;
use super::compress::{LEVEL, failed};
use super::section::{Kind, Writing};
use crate::error::Result;
use nom::Parser;
use nom::branch::alt;
use nom::bytes::complete::{tag, take, take_while_m_n};
use nom::combinator::{map_opt, verify};
use nom::number::complete::u8;

/// Bytes after which a section is written. A piece is never in two.
const SECTION: usize = 128 << 10;

/// Most bytes of a piece as they are.
const RAW_MAX: usize = 64 << 10;

/// Most bytes of a section's pieces.
pub(super) const SECTION_MAX: usize = SECTION + RAW_MAX + 64;

/// A piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece<B> {
    /// Bytes.
    Raw(B),
    /// So many numbers.
    Numbers { first: u64, count: u64 },
    /// So many pages of zeros.
    Zeros { count: u64 },
    /// Pages of a pack, which has a number in the image.
    Pages { pack: u64, first: u64, count: u64 },
}

impl<B: AsRef<[u8]>> Piece<B> {
    /// Bytes that it becomes; `None` if nobody can count them.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Raw(bytes) => Some(bytes.as_ref().len() as u64),
            Self::Numbers { count, .. } => count.checked_mul(8),
            Self::Zeros { count } | Self::Pages { count, .. } => count.checked_mul(PAGE as u64),
        }
    }
}

/// Collects pieces, joins those that continue each other, and writes them.
pub(super) struct PieceWriter {
    zstd: zstd::bulk::Compressor<'static>,
    /// The last piece, which may go on.
    last: Option<Piece<Vec<u8>>>,
    /// Those before it that are not written.
    section: Vec<u8>,
}

impl PieceWriter {
    /// Without any piece.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Io`] if zstd has no memory.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Compressor::new(LEVEL).map_err(failed)?,
            last: None,
            section: Vec::new(),
        })
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// What writing a section does.
    pub(super) fn raw(&mut self, mut bytes: &[u8], out: &mut Writing) -> Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = match &mut self.last {
                Some(Piece::Raw(held)) if held.len() < RAW_MAX => {
                    let split = bytes.split_at(bytes.len().min(RAW_MAX - held.len()));
                    held.extend_from_slice(split.0);
                    split
                }
                _ => {
                    let split = bytes.split_at(bytes.len().min(RAW_MAX));
                    self.begin(Piece::Raw(split.0.to_vec()), out)?;
                    split
                }
            };
            debug_assert!(!now.is_empty());
            bytes = rest;
        }
        Ok(())
    }

    /// Adds the number of a page.
    ///
    /// # Errors
    /// As [`PieceWriter::raw`].
    pub(super) fn number(&mut self, number: u64, out: &mut Writing) -> Result<()> {
        match &mut self.last {
            Some(Piece::Numbers { first, count }) if first.checked_add(*count) == Some(number) => {
                *count += 1;
                Ok(())
            }
            _ => self.begin(
                Piece::Numbers {
                    first: number,
                    count: 1,
                },
                out,
            ),
        }
    }

    /// Adds a page of zeros.
    ///
    /// # Errors
    /// As [`PieceWriter::raw`].
    pub(super) fn zeros(&mut self, out: &mut Writing) -> Result<()> {
        match &mut self.last {
            Some(Piece::Zeros { count }) => {
                *count += 1;
                Ok(())
            }
            _ => self.begin(Piece::Zeros { count: 1 }, out),
        }
    }

    /// Adds a page of a pack.
    ///
    /// # Errors
    /// As [`PieceWriter::raw`].
    pub(super) fn page(&mut self, from: u64, page: u64, out: &mut Writing) -> Result<()> {
        match &mut self.last {
            Some(Piece::Pages { pack, first, count })
                if *pack == from && first.checked_add(*count) == Some(page) =>
            {
                *count += 1;
                Ok(())
            }
            _ => self.begin(
                Piece::Pages {
                    pack: from,
                    first: page,
                    count: 1,
                },
                out,
            ),
        }
    }

    /// Writes what is not written.
    ///
    /// # Errors
    /// As [`PieceWriter::raw`].
    pub(super) fn finish(&mut self, out: &mut Writing) -> Result<()> {
        if let Some(last) = self.last.take() {
            encode(&last, &mut self.section);
        }
        self.write(out)
    }

    fn begin(&mut self, piece: Piece<Vec<u8>>, out: &mut Writing) -> Result<()> {
        if let Some(last) = self.last.replace(piece) {
            encode(&last, &mut self.section);
        }
        if self.section.len() >= SECTION {
            self.write(out)?;
        }
        Ok(())
    }

    fn write(&mut self, out: &mut Writing) -> Result<()> {
        if self.section.is_empty() {
            return Ok(());
        }
        let stored = self.zstd.compress(&self.section).map_err(failed)?;
        out.append(Kind::Pieces, self.section.len(), &stored)?;
        self.section.clear();
        Ok(())
    }
}

fn encode(piece: &Piece<Vec<u8>>, to: &mut Vec<u8>) {
    match piece {
        Piece::Raw(bytes) => {
            to.push(0);
            put(bytes.len() as u64, to);
            to.extend_from_slice(bytes);
        }
        Piece::Numbers { first, count } => {
            to.push(1);
            put(*first, to);
            put(*count, to);
        }
        Piece::Zeros { count } => {
            to.push(2);
            put(*count, to);
        }
        Piece::Pages { pack, first, count } => {
            to.push(3);
            put(*pack, to);
            put(*first, to);
            put(*count, to);
        }
    }
}

/// Writes a number.
pub(super) fn put(mut number: u64, to: &mut Vec<u8>) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return to.push(low);
        }
        to.push(low | 0x80);
    }
}

/// Reads a number.
pub(super) fn get(input: &[u8]) -> nom::IResult<&[u8], u64> {
    let more = take_while_m_n(0, 9, |byte| byte & 0x80 != 0);
    let last = verify(u8, |byte| byte & 0x80 == 0);
    map_opt((more, last), |(more, last): (&[u8], u8)| {
        let is_longest = more.len() == 9;
        if (last == 0 && !more.is_empty()) || (is_longest && last > 1) {
            return None;
        }
        let high = u64::from(last) << (7 * more.len());
        let shifted = more.iter().enumerate();
        Some(shifted.fold(high, |number, (at, byte)| {
            number | u64::from(byte & 0x7f) << (7 * at)
        }))
    })
    .parse(input)
}

/// Reads a count.
pub(super) fn get_count(input: &[u8]) -> nom::IResult<&[u8], u64> {
    verify(get, |count| *count > 0).parse(input)
}

/// Reads the next piece of a section.
pub(super) fn decode(input: &[u8]) -> nom::IResult<&[u8], Piece<&[u8]>> {
    let length = map_opt(get_count, |length| usize::try_from(length).ok());
    let raw = (tag(&[0_u8][..]), length.flat_map(take)).map(|(_, bytes)| Piece::Raw(bytes));
    let numbers =
        (tag(&[1_u8][..]), get, get_count).map(|(_, first, count)| Piece::Numbers { first, count });
    let zeros = (tag(&[2_u8][..]), get_count).map(|(_, count)| Piece::Zeros { count });
    let pages = (tag(&[3_u8][..]), get, get, get_count)
        .map(|(_, pack, first, count)| Piece::Pages { pack, first, count });
    alt((raw, numbers, zeros, pages)).parse(input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_has_one_form() {
        for bytes in [&[][..], &[0x80], &[0x80, 0], &[0xff; 10], &[0xff; 11]] {
            assert!(get(bytes).is_err(), "{bytes:x?}");
        }
        let mut too_large = [0x80; 10];
        too_large[9] = 2;
        assert!(get(&too_large).is_err());
    }

    proptest! {
        #[test]
        fn what_is_put_is_got(number: u64, shift in 0..64_u32) {
            let mut bytes = Vec::new();
            put(number >> shift, &mut bytes);
            bytes.push(7);
            prop_assert_eq!(get(&bytes), Ok((&[7_u8][..], number >> shift)));
        }

        #[test]
        fn anything_is_read_without_a_panic(bytes: Vec<u8>) {
            let mut rest = bytes.as_slice();
            while let Ok((next, _)) = decode(rest) {
                prop_assert!(next.len() < rest.len());
                rest = next;
            }
        }
    }
}
