//! Finds the pages in a memory image while it goes by, in whatever pieces it comes. (Xen's
//! docs/specs/libxl-migration-stream.pandoc and libxc-migration-stream.pandoc; in front of both xl's own header.)
//!
//! ```text
//!  xl's header -> its optional part -> libxl's header -> record ... -> libxc's context
//!     -> libxc's and the domain's header -> record ... -> record of pages: head, numbers, pages -> record ...
//!     -> libxc's end -> the rest, which is not looked at
//! ```
//! Every byte goes to the [`Sink`] once and in order, whatever is understood of it. Where something is not understood,
//! the rest goes there as it is: what is kept of a memory image does not depend on what we know of its form. Heads are
//! gathered in a buffer of a fixed size; by a length of the stream's nothing is allocated.

use crate::error::Result;
use nom::Parser;
use nom::bytes::complete::{tag, take};
use nom::combinator::{all_consuming, verify};
use nom::number::complete::{be_u16, be_u32, be_u64, le_u16, le_u32, le_u64};
use nom::number::{Endianness, complete::u32};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// "LibxlFmt", big endian, as everything in the header.
pub(super) const LIBXL_IDENT: u64 = 0x4c69_6278_6c46_6d74;
pub(super) const LIBXL_VERSION: u32 = 2;
/// The record after which the hypervisor library's own stream follows.
pub(super) const LIBXL_LIBXC_CONTEXT: u32 = 1;
pub(super) const LIBXL_END: u32 = 0;

pub(super) const LIBXC_MARKER: u64 = u64::MAX;
/// "XENF".
pub(super) const LIBXC_ID: u32 = 0x5845_4e46;
pub(super) const LIBXC_VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
pub(super) const LIBXC_END: u32 = 0;
pub(super) const LIBXC_PAGE_DATA: u32 = 1;

/// Bit 0 of the options of both streams: the rest is big endian.
pub(super) const BIG_ENDIAN: u32 = 1;

/// Longest record that Xen takes, in bytes (its REC_LENGTH_MAX).
pub(super) const RECORD_MAX: u32 = 128 << 20;

/// In the number of a page, above: of these types no content follows (broken, only allocated, not there).
pub(super) const WITHOUT_CONTENT: std::ops::RangeInclusive<u64> = 0xd..=0xf;

/// xl's header: 32 bytes of magic, byte order, two words of flags, length of the rest.
const XL_HEAD: usize = 32 + 4 * 4;
const XL_MAGIC: &[u8] = b"Xen saved domain, xl format\n \0 \r";
const XL_BYTE_ORDER: u32 = 0x0102_0304;

/// libxl's header: ident, version, options, all big endian.
const LIBXL_HEAD: usize = 8 + 4 + 4;

/// libxc's header, big endian: marker, id, version, options, 6 bytes; then the domain's: type, shift of a page, 2 bytes,
/// Xen's version in two words.
const LIBXC_HEAD: usize = 8 + 4 + 4 + 2 + 6 + 4 + 2 + 2 + 4 + 4;

/// A record's type and length.
const RECORD_HEAD: usize = 4 + 4;

/// The head of a record of pages: how many, and 4 bytes.
const PAGES_HEAD: usize = 4 + 4;
/// The number of a page: its type above, which one it is below.
const NUMBER: usize = 8;

/// Who gets the pieces, in their order.
pub(crate) trait Sink {
    /// Bytes that are no page.
    ///
    /// # Errors
    /// The sink's own; the splitter passes it on.
    fn raw(&mut self, bytes: &[u8]) -> Result<()>;

    /// The number of a page with its type: eight bytes, little endian, in the stream. Contents follow after all numbers
    /// of a record, in the same order, of those that [`has_content`].
    ///
    /// # Errors
    /// As [`Sink::raw`].
    fn number(&mut self, number: u64) -> Result<()>;

    /// The content of a page.
    ///
    /// # Errors
    /// As [`Sink::raw`].
    fn page(&mut self, content: &[u8; PAGE]) -> Result<()>;
}

/// Whether a page of this number has content in the stream.
pub(crate) fn has_content(number: u64) -> bool {
    !WITHOUT_CONTENT.contains(&(number >> 60))
}

/// How far the stream was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// So far all of it, and the memory has not ended.
    SoFar,
    /// All up to the end of the memory.
    ToItsEnd,
    /// Not from some place on; a sentence that says why.
    Lost(&'static str),
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    XlHead,
    LibxlHead,
    LibxlRecord,
    LibxcHead,
    LibxcRecord,
    /// A record of pages, of so many bytes.
    PagesHead(u32),
    /// Numbers of pages, and what is known of the record by then.
    Number(Record),
    /// So many pages.
    Page(u64),
    /// So many bytes of no interest, then something else.
    Skip(u64, After),
    Rest(Followed),
}

/// What comes after bytes of no interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    LibxlHead,
    LibxlRecord,
    LibxcRecord,
}

/// A record of pages of which the numbers are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    /// Numbers that are to come.
    left: u32,
    /// Pages that have content.
    pages: u64,
    /// Bytes for content that the record has by its length.
    room: u64,
}

/// Takes the stream apart.
pub(crate) struct Splitter {
    expect: Expect,
    /// What there is of a head, a number or a page that is not complete.
    partial: Box<[u8; PAGE]>,
    held: usize,
}

impl Splitter {
    /// Before the first byte of a memory image, which begins with xl's header.
    pub(crate) fn new() -> Self {
        Self {
            expect: Expect::XlHead,
            partial: Box::new([0; PAGE]),
            held: 0,
        }
    }

    /// Behind xl's header, where libxl's begins.
    pub(crate) fn behind_header() -> Self {
        Self {
            expect: Expect::LibxlHead,
            ..Self::new()
        }
    }

    /// How far the stream was understood.
    pub(crate) fn followed(&self) -> Followed {
        match self.expect {
            Expect::Rest(followed) => followed,
            _ => Followed::SoFar,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The sink's; the splitter is of no use after one.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) -> Result<()> {
        while !bytes.is_empty() {
            bytes = match self.expect {
                Expect::Rest(_) => {
                    sink.raw(bytes)?;
                    &[]
                }
                Expect::Skip(left, after) => self.skip(left, after, bytes, sink)?,
                _ => self.gather(bytes, sink)?,
            };
        }
        Ok(())
    }

    /// Hands out what was held back, at the end of the stream.
    ///
    /// # Errors
    /// The sink's.
    pub(crate) fn finish(&mut self, sink: &mut impl Sink) -> Result<Followed> {
        if self.held > 0 {
            sink.raw(&self.partial[..self.held])?;
            self.held = 0;
        }
        if self.followed() == Followed::SoFar {
            self.expect = Expect::Rest(Followed::Lost("it ends before the memory does"));
        }
        Ok(self.followed())
    }

    fn skip<'a>(
        &mut self,
        left: u64,
        after: After,
        bytes: &'a [u8],
        sink: &mut impl Sink,
    ) -> Result<&'a [u8]> {
        let now = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (skipped, rest) = bytes.split_at(now);
        sink.raw(skipped)?;
        self.expect = skip(left - now as u64, after);
        Ok(rest)
    }

    /// Completes the head, number or page that comes, or keeps what there is of it.
    fn gather<'a>(&mut self, bytes: &'a [u8], sink: &mut impl Sink) -> Result<&'a [u8]> {
        let wanted = self.wanted();
        // Most pages are whole in what came, and are not copied.
        if self.held == 0
            && let Some((unit, rest)) = bytes.split_at_checked(wanted)
        {
            self.expect = take_unit(self.expect, unit, sink)?;
            return Ok(rest);
        }
        let (part, rest) = bytes.split_at(bytes.len().min(wanted - self.held));
        self.partial[self.held..self.held + part.len()].copy_from_slice(part);
        self.held += part.len();
        if self.held == wanted {
            self.held = 0;
            self.expect = take_unit(self.expect, &self.partial[..wanted], sink)?;
        }
        Ok(rest)
    }

    /// Bytes of what comes next; not zero, and not more than a page.
    fn wanted(&self) -> usize {
        match self.expect {
            Expect::XlHead => XL_HEAD,
            Expect::LibxlHead => LIBXL_HEAD,
            Expect::LibxlRecord | Expect::LibxcRecord => RECORD_HEAD,
            Expect::LibxcHead => LIBXC_HEAD,
            Expect::PagesHead(_) => PAGES_HEAD,
            Expect::Number(_) => NUMBER,
            Expect::Page(_) | Expect::Skip(..) | Expect::Rest(_) => PAGE,
        }
    }
}

/// Hands out a unit that is complete, and says what comes after it.
fn take_unit(expect: Expect, unit: &[u8], sink: &mut impl Sink) -> Result<Expect> {
    Ok(match expect {
        Expect::Number(record) => {
            let Ok((_, number)) = number(unit) else {
                sink.raw(unit)?;
                return Ok(lost("a number of a page is none"));
            };
            sink.number(number)?;
            let pages = record.pages + u64::from(has_content(number));
            numbers(Record {
                left: record.left - 1,
                pages,
                ..record
            })
        }
        Expect::Page(left) => {
            match unit.try_into() {
                Ok(content) => sink.page(content)?,
                Err(_) => sink.raw(unit)?,
            }
            pages(left - 1)
        }
        head => {
            sink.raw(unit)?;
            after_head(head, unit)
        }
    })
}

fn after_head(head: Expect, unit: &[u8]) -> Expect {
    match head {
        Expect::XlHead => xl_head(unit).map_or(
            lost("it does not begin with a header of xl's that we know"),
            |(_, length)| skip(length.into(), After::LibxlHead),
        ),
        Expect::LibxlHead => libxl_head(unit)
            .map_or(lost("it is no stream of libxl's that we know"), |_| {
                Expect::LibxlRecord
            }),
        Expect::LibxlRecord => match record_head(unit) {
            Ok((_, (LIBXL_LIBXC_CONTEXT, 0))) => Expect::LibxcHead,
            Ok((_, (LIBXL_END, _))) => lost("there is no memory in it"),
            Ok((_, (_, length))) => skip(padded(length), After::LibxlRecord),
            Err(_) => lost("a part of it is longer than any can be"),
        },
        Expect::LibxcHead => libxc_head(unit).map_or(
            lost("the memory in it has a form that we do not know"),
            |_| Expect::LibxcRecord,
        ),
        Expect::LibxcRecord => match record_head(unit) {
            Ok((_, (LIBXC_END, 0))) => Expect::Rest(Followed::ToItsEnd),
            Ok((_, (LIBXC_END, _))) => lost("the end of its memory has something in it"),
            Ok((_, (LIBXC_PAGE_DATA, length))) => Expect::PagesHead(length),
            Ok((_, (_, length))) => skip(padded(length), After::LibxcRecord),
            Err(_) => lost("a part of its memory is longer than any can be"),
        },
        Expect::PagesHead(length) => match pages_head(length, unit) {
            Ok((_, record)) => numbers(record),
            Err(_) => lost("a part of it has more pages than fit in"),
        },
        other => other,
    }
}

fn lost(why: &'static str) -> Expect {
    Expect::Rest(Followed::Lost(why))
}

fn skip(left: u64, after: After) -> Expect {
    match after {
        _ if left > 0 => Expect::Skip(left, after),
        After::LibxlHead => Expect::LibxlHead,
        After::LibxlRecord => Expect::LibxlRecord,
        After::LibxcRecord => Expect::LibxcRecord,
    }
}

fn numbers(record: Record) -> Expect {
    if record.left > 0 {
        Expect::Number(record)
    } else if record.pages * PAGE as u64 == record.room {
        pages(record.pages)
    } else {
        lost("a part of it has not as many pages as it says")
    }
}

fn pages(left: u64) -> Expect {
    // Nothing pads the record: all that is in it comes in multiples of eight bytes.
    if left > 0 {
        Expect::Page(left)
    } else {
        Expect::LibxcRecord
    }
}

/// Records end at multiples of eight bytes.
fn padded(length: u32) -> u64 {
    u64::from(length).next_multiple_of(8)
}

type Parsed<'a, T> = nom::IResult<&'a [u8], T>;

/// Length of what follows xl's header.
fn xl_head(unit: &[u8]) -> Parsed<'_, u32> {
    let word = || u32(Endianness::Native);
    let order = verify(word(), |order| *order == XL_BYTE_ORDER);
    let fields = (tag(XL_MAGIC), order, word(), word(), word());
    all_consuming(fields.map(|(_, _, _, _, length)| length)).parse(unit)
}

fn libxl_head(unit: &[u8]) -> Parsed<'_, ()> {
    let ident = verify(be_u64, |ident| *ident == LIBXL_IDENT);
    let version = verify(be_u32, |version| *version == LIBXL_VERSION);
    let options = verify(be_u32, |options| options & BIG_ENDIAN == 0);
    all_consuming((ident, version, options).map(|_| ())).parse(unit)
}

/// Type and length of a record of either stream.
fn record_head(unit: &[u8]) -> Parsed<'_, (u32, u32)> {
    all_consuming((le_u32, verify(le_u32, |length| *length <= RECORD_MAX))).parse(unit)
}

fn libxc_head(unit: &[u8]) -> Parsed<'_, ()> {
    let marker = verify(be_u64, |marker| *marker == LIBXC_MARKER);
    let id = verify(be_u32, |id| *id == LIBXC_ID);
    let version = verify(be_u32, |version| LIBXC_VERSIONS.contains(version));
    let options = verify(be_u16, |options| u32::from(*options) & BIG_ENDIAN == 0);
    let shift = verify(le_u16, |shift| {
        1_usize.checked_shl((*shift).into()) == Some(PAGE)
    });
    let libxc = (marker, id, version, options, take(6_usize));
    let domain = (le_u32, shift, take(2 + 4 + 4_usize));
    all_consuming((libxc, domain).map(|_| ())).parse(unit)
}

/// The head of a record of pages of `length` bytes.
fn pages_head(length: u32, unit: &[u8]) -> Parsed<'_, Record> {
    let room = |count: u32| {
        let before = PAGES_HEAD as u64 + u64::from(count) * NUMBER as u64;
        u64::from(length).checked_sub(before)
    };
    let (rest, count) = verify(le_u32, |count| room(*count).is_some()).parse(unit)?;
    let (rest, _) = all_consuming(take(4_usize)).parse(rest)?;
    let record = Record {
        left: count,
        pages: 0,
        room: room(count).unwrap_or(0),
    };
    Ok((rest, record))
}

fn number(unit: &[u8]) -> Parsed<'_, u64> {
    all_consuming(le_u64).parse(unit)
}
