//! thin-provisioning-tools' XML, read as a stream: that of 0.9, and 1.x's, which may define mappings once and
//! refer to them from several volumes.

use std::collections::HashMap;
use std::io::{self, BufRead, Read};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event as Xml};

use super::VolumeFacts;
use crate::dump::PoolFacts;
use crate::{Run, ToolError};

/// Runs in definitions that are kept (32 bytes each): a text that defines more is refused.
const DEFINED_RUNS_MAX: usize = 1 << 26;
/// Bytes that one element may take.
const ELEMENT_BYTES_MAX: usize = 1 << 16;
/// Attributes of one element; none that is known has more than seven.
const ATTRIBUTES_MAX: usize = 16;

/// What stands in the text, definitions put in their place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The pool begins.
    Superblock(PoolFacts),
    /// A volume begins.
    Device(VolumeFacts),
    /// Mappings of that volume.
    Run(Run),
    /// The volume ends.
    EndDevice,
}

/// Reads XML.
pub struct XmlReader<'a> {
    xml: Reader<Bounded<'a>>,
    buffer: Vec<u8>,
    state: State,
    /// Runs by the name they were defined under.
    defined: HashMap<String, Vec<Run>>,
    defined_runs: usize,
    /// What follows an element without an end tag of its own.
    follows: Option<Event>,
    /// What is left of the definition that a volume refers to.
    expanding: Option<(String, usize)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Outside,
    Superblock,
    Definition(String),
    Device,
    Ended,
}

/// Refuses elements without end, which would fill the memory; counts lines.
struct Bounded<'a> {
    inner: &'a mut dyn BufRead,
    line: u64,
    bytes: u64,
    /// Bytes since the last event.
    element: usize,
}

impl Read for Bounded<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let len = ready.len().min(into.len());
        into[..len].copy_from_slice(&ready[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl BufRead for Bounded<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.element > ELEMENT_BYTES_MAX {
            let what = format!("an element of more than {ELEMENT_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, len: usize) {
        // What is consumed was filled before, so this reads nothing.
        if let Ok(ready) = self.inner.fill_buf() {
            let passed = &ready[..len.min(ready.len())];
            self.line += passed.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        self.bytes += len as u64;
        self.element += len;
        self.inner.consume(len);
    }
}

impl<'a> XmlReader<'a> {
    /// A reader of `input`.
    pub fn new(input: &'a mut dyn BufRead) -> Self {
        let bounded = Bounded {
            inner: input,
            line: 1,
            bytes: 0,
            element: 0,
        };
        Self {
            xml: Reader::from_reader(bounded),
            buffer: Vec::new(),
            state: State::Outside,
            defined: HashMap::new(),
            defined_runs: 0,
            follows: None,
            expanding: None,
        }
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.xml.get_ref().bytes
    }

    /// An error that tells of `what` and where it is.
    pub fn wrong(&self, what: &str) -> ToolError {
        ToolError::Refused(format!("line {}: {what}", self.xml.get_ref().line))
    }

    /// `error` with the line that was read last.
    pub fn at(&self, error: ToolError) -> ToolError {
        self.wrong(&error.to_string())
    }

    /// What comes next; `None` at the end.
    ///
    /// # Errors
    /// `Refused`: what is wrong and in which line.
    #[expect(
        clippy::should_implement_trait,
        reason = "an error ends it, which no iterator says"
    )]
    pub fn next(&mut self) -> Result<Option<Event>, ToolError> {
        loop {
            if let Some(run) = self.expand() {
                return Ok(Some(Event::Run(run)));
            }
            if let Some(event) = self.follows.take() {
                return Ok(Some(event));
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.clear();
            self.xml.get_mut().element = 0;
            let event = self
                .xml
                .read_event_into(&mut buffer)
                .map_err(|error| match &error {
                    quick_xml::Error::Io(system) if system.raw_os_error().is_some() => {
                        self.wrong(&format!("cannot be read: {system}"))
                    }
                    _ => self.wrong(&format!("this is no XML: {error}")),
                })?;
            let outcome = match event {
                Xml::Start(tag) => self.open(&tag),
                Xml::Empty(tag) => self.empty(&tag),
                Xml::End(tag) => self.close(tag.name().as_ref()),
                Xml::Text(text) if !text.iter().all(u8::is_ascii_whitespace) => {
                    Err(self.wrong("text between the elements"))
                }
                Xml::Text(_) | Xml::Comment(_) | Xml::Decl(_) | Xml::DocType(_) | Xml::PI(_) => {
                    Ok(None)
                }
                Xml::Eof if self.state == State::Ended => {
                    self.buffer = buffer;
                    return Ok(None);
                }
                Xml::Eof => Err(self.wrong("the end comes in the middle")),
                _ => Err(self.wrong("an element of another kind of XML")),
            };
            self.buffer = buffer;
            if let Some(event) = outcome? {
                return Ok(Some(event));
            }
        }
    }

    /// The next run of the definition that is being put in place.
    fn expand(&mut self) -> Option<Run> {
        let (name, at) = self.expanding.as_mut()?;
        let run = self
            .defined
            .get(name)
            .and_then(|runs| runs.get(*at))
            .copied();
        *at += 1;
        if run.is_none() {
            self.expanding = None;
        }
        run
    }

    fn open(&mut self, tag: &BytesStart<'_>) -> Result<Option<Event>, ToolError> {
        match (tag.name().as_ref(), &self.state) {
            (b"superblock", State::Outside) => {
                let facts = self.superblock(tag)?;
                self.state = State::Superblock;
                Ok(Some(Event::Superblock(facts)))
            }
            (b"device", State::Superblock) => {
                let volume = self.device(tag)?;
                self.state = State::Device;
                Ok(Some(Event::Device(volume)))
            }
            (b"def", State::Superblock) => {
                let name = self.define(tag)?;
                self.state = State::Definition(name);
                Ok(None)
            }
            // Written with an end tag of its own.
            (b"single_mapping" | b"range_mapping" | b"ref", _) => self.empty(tag),
            (other, _) => Err(self.unexpected(other)),
        }
    }

    /// Begins a definition; gives its name.
    fn define(&mut self, tag: &BytesStart<'_>) -> Result<String, ToolError> {
        let name = self.name(tag)?;
        if self.defined.insert(name.clone(), Vec::new()).is_some() {
            return Err(self.wrong(&format!("a definition named '{name}' is there twice")));
        }
        Ok(name)
    }

    fn empty(&mut self, tag: &BytesStart<'_>) -> Result<Option<Event>, ToolError> {
        let run = match tag.name().as_ref() {
            b"single_mapping" => self.single(tag)?,
            b"range_mapping" => self.range(tag)?,
            b"ref" if self.state == State::Device => {
                let name = self.name(tag)?;
                if !self.defined.contains_key(&name) {
                    return Err(self.wrong(&format!("no definition named '{name}' came before")));
                }
                self.expanding = Some((name, 0));
                return Ok(None);
            }
            b"device" if self.state == State::Superblock => {
                let volume = self.device(tag)?;
                self.follows = Some(Event::EndDevice);
                return Ok(Some(Event::Device(volume)));
            }
            b"superblock" if self.state == State::Outside => {
                let facts = self.superblock(tag)?;
                self.state = State::Ended;
                return Ok(Some(Event::Superblock(facts)));
            }
            b"def" if self.state == State::Superblock => {
                self.define(tag)?;
                return Ok(None);
            }
            other => return Err(self.unexpected(other)),
        };
        match &self.state {
            State::Device => Ok(Some(Event::Run(run))),
            State::Definition(name) => {
                self.defined_runs += 1;
                if self.defined_runs > DEFINED_RUNS_MAX {
                    return Err(self.wrong("more definitions than fit in memory"));
                }
                if let Some(runs) = self.defined.get_mut(name) {
                    runs.push(run);
                }
                Ok(None)
            }
            _ => Err(self.wrong("a mapping outside of a device")),
        }
    }

    fn close(&mut self, name: &[u8]) -> Result<Option<Event>, ToolError> {
        match (name, &self.state) {
            (b"superblock", State::Superblock) => {
                self.state = State::Ended;
                Ok(None)
            }
            (b"device", State::Device) => {
                self.state = State::Superblock;
                Ok(Some(Event::EndDevice))
            }
            (b"def", State::Definition(_)) => {
                self.state = State::Superblock;
                Ok(None)
            }
            (b"single_mapping" | b"range_mapping" | b"ref", _) => Ok(None),
            (other, _) => Err(self.unexpected(other)),
        }
    }

    fn unexpected(&self, name: &[u8]) -> ToolError {
        self.wrong(&format!(
            "<{}> is not expected here",
            String::from_utf8_lossy(name)
        ))
    }

    fn superblock(&self, tag: &BytesStart<'_>) -> Result<PoolFacts, ToolError> {
        let [
            time,
            transaction,
            flags,
            version,
            data_block_size,
            nr_data_blocks,
        ] = self.numbers(
            tag,
            [
                "time",
                "transaction",
                "flags?",
                "version?",
                "data_block_size",
                "nr_data_blocks",
            ],
        )?;
        Ok(PoolFacts {
            time: self.narrow("time", time)?,
            transaction,
            flags: self.narrow("flags", flags)?,
            // COMPAT: 0 stands for none; thin_restore 0.9 writes 1 then.
            version: self.narrow("version", version.max(1))?,
            data_block_size: self.narrow("data_block_size", data_block_size)?,
            nr_data_blocks,
            metadata_snap: None,
        })
    }

    fn device(&self, tag: &BytesStart<'_>) -> Result<VolumeFacts, ToolError> {
        let [id, _, transaction, creation_time, snap_time] = self.numbers(
            tag,
            [
                "dev_id",
                "mapped_blocks",
                "transaction",
                "creation_time",
                "snap_time",
            ],
        )?;
        Ok(VolumeFacts {
            id,
            transaction,
            creation_time: self.narrow("creation_time", creation_time)?,
            snap_time: self.narrow("snap_time", snap_time)?,
        })
    }

    fn single(&self, tag: &BytesStart<'_>) -> Result<Run, ToolError> {
        let [thin, data, time] = self.numbers(tag, ["origin_block", "data_block", "time"])?;
        Ok(Run {
            thin,
            data,
            len: 1,
            time: self.narrow("time", time)?,
        })
    }

    fn range(&self, tag: &BytesStart<'_>) -> Result<Run, ToolError> {
        let names = ["origin_begin", "data_begin", "length", "time"];
        let [thin, data, len, time] = self.numbers(tag, names)?;
        Ok(Run {
            thin,
            data,
            len,
            time: self.narrow("time", time)?,
        })
    }

    fn narrow(&self, name: &str, number: u64) -> Result<u32, ToolError> {
        u32::try_from(number).map_err(|_| self.wrong(&format!("{name}=\"{number}\" is too large")))
    }

    /// The attributes `names` as numbers; those that end in `?` may be missing and are 0 then.
    fn numbers<const N: usize>(
        &self,
        tag: &BytesStart<'_>,
        names: [&str; N],
    ) -> Result<[u64; N], ToolError> {
        let mut found = [None; N];
        self.attributes(tag, |key, value| {
            let wanted = |name: &str| name.trim_end_matches('?').as_bytes() == key;
            if let Some(at) = names.iter().position(|name| wanted(name)) {
                found[at] = Some(self.number(names[at], value)?);
            }
            Ok(())
        })?;
        let mut numbers = [0; N];
        for (at, name) in names.iter().enumerate() {
            numbers[at] = match found[at] {
                Some(number) => number,
                None if name.ends_with('?') => 0,
                None => return Err(self.wrong(&format!("attribute {name} is missing"))),
            };
        }
        Ok(numbers)
    }

    /// Calls `each` with every attribute. None may be there twice: which one is meant nobody knows.
    fn attributes(
        &self,
        tag: &BytesStart<'_>,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), ToolError>,
    ) -> Result<(), ToolError> {
        let mut seen: [&[u8]; ATTRIBUTES_MAX] = [&[]; ATTRIBUTES_MAX];
        for (at, attribute) in tag.attributes().with_checks(false).enumerate() {
            let attribute =
                attribute.map_err(|error| self.wrong(&format!("an attribute: {error}")))?;
            let key = attribute.key.into_inner();
            if at >= ATTRIBUTES_MAX {
                let what = format!("an element with more than {ATTRIBUTES_MAX} attributes");
                return Err(self.wrong(&what));
            }
            if seen[..at].contains(&key) {
                let key = String::from_utf8_lossy(key);
                return Err(self.wrong(&format!("attribute {key} is there twice")));
            }
            seen[at] = key;
            each(key, &attribute.value)?;
        }
        Ok(())
    }

    fn number(&self, name: &str, value: &[u8]) -> Result<u64, ToolError> {
        let text = std::str::from_utf8(value).unwrap_or("?");
        text.parse().map_err(|_| {
            let name = name.trim_end_matches('?');
            self.wrong(&format!("{name}=\"{text}\" is no number"))
        })
    }

    fn name(&self, tag: &BytesStart<'_>) -> Result<String, ToolError> {
        let mut found = None;
        self.attributes(tag, |key, value| {
            if key == b"name" {
                found = Some(String::from_utf8_lossy(value).into_owned());
            }
            Ok(())
        })?;
        found.ok_or_else(|| self.wrong("attribute name is missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Result<Vec<Event>, String> {
        let mut input = text.as_bytes();
        let mut xml = XmlReader::new(&mut input);
        let mut found = Vec::new();
        while let Some(event) = xml.next().map_err(|error| error.to_string())? {
            found.push(event);
        }
        Ok(found)
    }

    const POOL: &str = "<superblock uuid=\"\" time=\"1\" transaction=\"2\" \
                        data_block_size=\"128\" nr_data_blocks=\"9\">";
    const DEVICE: &str = "<device dev_id=\"1\" mapped_blocks=\"0\" transaction=\"0\" \
                          creation_time=\"0\" snap_time=\"0\">";

    #[test]
    fn definitions_stand_where_they_are_referred_to() {
        let text = format!(
            "{POOL}<def name=\"a\"><range_mapping origin_begin=\"4\" data_begin=\"0\" \
             length=\"3\" time=\"0\"/></def>\n{DEVICE}<single_mapping origin_block=\"1\" \
             data_block=\"5\" time=\"1\"/><ref name=\"a\"/></device></superblock>\n"
        );
        let runs: Vec<Run> = events(&text)
            .expect("good XML")
            .into_iter()
            .filter_map(|event| match event {
                Event::Run(run) => Some(run),
                _ => None,
            })
            .collect();
        let run = |thin, data, len, time| Run {
            thin,
            data,
            len,
            time,
        };
        assert_eq!(runs, [run(1, 5, 1, 1), run(4, 0, 3, 0)]);
    }

    #[test]
    fn elements_without_content_need_no_end_tag() {
        let empty = |tag: &str| tag.replace('>', "/>");
        let whole = format!("<!DOCTYPE superblock><?x y?>{POOL}{DEVICE}</device></superblock>");
        let short = format!("{POOL}{}</superblock>", empty(DEVICE));
        assert_eq!(events(&short), events(&whole));
        assert!(matches!(
            events(&whole).expect("good XML")[..],
            [Event::Superblock(_), Event::Device(_), Event::EndDevice]
        ));
        let alone = events(&empty(POOL)).expect("good XML");
        assert_eq!(
            alone,
            events(&format!("{POOL}</superblock>")).expect("good XML")
        );
        let defined =
            format!("{POOL}<def name=\"a\"/>{DEVICE}<ref name=\"a\"/></device></superblock>");
        assert_eq!(events(&defined), events(&whole));
        let two =
            events(&format!("{}{}", empty(POOL), empty(DEVICE))).expect_err("a device behind");
        assert!(two.contains("<device> is not expected"), "{two}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let long = "a".repeat(2 * ELEMENT_BYTES_MAX);
        let cases = [
            ("".to_owned(), "the end comes in the middle"),
            ("nonsense".to_owned(), "text between"),
            (format!("{POOL}\n\n<foo/>"), "line 3: <foo>"),
            (format!("{POOL}\n{DEVICE}"), "line 2: the end comes"),
            (format!("{POOL}<ref name=\"x\"/>"), "<ref> is not expected"),
            (format!("{POOL}{DEVICE}<ref name=\"x\"/>"), "named 'x'"),
            (POOL.replace("\"9\"", "\"nine\""), "nr_data_blocks=\"nine\""),
            (POOL.replace("time", "tide"), "attribute time is missing"),
            (format!("<superblock {long}"), "an element of more than"),
            (
                format!("{POOL}\n{}", DEVICE.replace("snap", "dev_id=\"7\" snap")),
                "line 2: attribute dev_id is there twice",
            ),
            (
                POOL.replace("uuid", "x=\"\" x"),
                "attribute x is there twice",
            ),
            (
                format!("{POOL}<def name=\"a\" name=\"a\">"),
                "attribute name is there twice",
            ),
            (
                format!("{POOL}\n<def name=\"a\"></def>\n<def name=\"a\"/>"),
                "line 3: a definition named 'a' is there twice",
            ),
            (
                (0..20).fold("<superblock".to_owned(), |text, n| {
                    format!("{text} a{n}=\"\"")
                }) + ">",
                "more than 16 attributes",
            ),
        ];
        for (text, wanted) in cases {
            let error = events(&text).expect_err(wanted);
            assert!(error.contains(wanted), "{error}: {wanted}");
        }
    }
}
