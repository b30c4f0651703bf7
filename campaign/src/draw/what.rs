//! What is drawn from: a fault model with its lists spelled out.

use super::DrawError;
use super::bits;
use super::stream::Stream;
use crate::file::{Bits, ClockKind, FaultModel, FrameKind, Place, class_words, register_words};
use crate::model::{
    BlockFault, ClockFault, Direction, EntryFault, Fault, FrameFault, MemoryPlace, PageFault,
};

/// A word of 64 bits of a register, with those of its bits that can be hit.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    pub register: &'static str,
    pub lane: u8,
    pub bits: u64,
}

/// See the module.
pub struct Source {
    model: FaultModel,
    /// Of registers.
    pub words: Vec<Word>,
    /// Of memory.
    pub classes: Vec<&'static str>,
}

impl Source {
    pub fn new(model: &FaultModel) -> Result<Self, DrawError> {
        let mut source = Self {
            model: model.clone(),
            words: Vec::new(),
            classes: Vec::new(),
        };
        match model {
            FaultModel::Register { registers, bits } => {
                let registers = registers
                    .iter()
                    .filter_map(|word| register_words(word).ok())
                    .flatten();
                for register in registers {
                    for lane in 0..register.lanes() {
                        source.words.push(Word {
                            register: register.name(),
                            lane,
                            bits: register.bits(),
                        });
                    }
                }
                let count = u32::from(bits.count);
                source.words.retain(|word| word.bits.count_ones() >= count);
                if source.words.is_empty() {
                    return Err(DrawError::TooManyBits { count: bits.count });
                }
            }
            FaultModel::Memory { place, .. } | FaultModel::Page { place, .. } => {
                if let Place::Classes(classes) = place {
                    let classes = classes.iter().filter_map(|word| class_words(word).ok());
                    source.classes = classes.flatten().collect();
                }
            }
            _ => {}
        }
        Ok(source)
    }

    pub fn draw(&self, stream: &mut Stream) -> Fault {
        match &self.model {
            FaultModel::Register { bits, .. } => self.register(bits, stream),
            FaultModel::Memory { place, bits } => Fault::Memory {
                place: self.place(place, stream),
                mask: bits::mask(bits, u64::MAX, stream),
                change: bits::change(bits, stream),
            },
            FaultModel::Page { place, how } => Fault::Page {
                place: self.place(place, stream),
                how: stream.one(how).copied().unwrap_or(PageFault::Zero),
            },
            FaultModel::Block { how, metadata } => Fault::Block {
                how: stream.one(how).copied().unwrap_or(BlockFault::Corrupt),
                metadata: *metadata,
                pick: stream.bits(),
            },
            FaultModel::Frame {
                how,
                direction,
                delay,
            } => {
                let how = match stream.one(how).copied().unwrap_or(FrameKind::Drop) {
                    FrameKind::Drop => FrameFault::Drop,
                    FrameKind::Corrupt => FrameFault::Corrupt,
                    FrameKind::Duplicate => FrameFault::Duplicate,
                    FrameKind::Reorder => FrameFault::Reorder,
                    FrameKind::Delay => FrameFault::Delay {
                        boundaries: u32::try_from(stream.of(*delay)).unwrap_or(u32::MAX),
                    },
                };
                Fault::Frame {
                    how,
                    direction: stream.one(direction).copied().unwrap_or(Direction::Output),
                    pick: stream.bits(),
                }
            }
            FaultModel::Clock { how, step_us, ppm } => Fault::Clock {
                how: match stream.one(how).copied().unwrap_or(ClockKind::Stop) {
                    ClockKind::Step => ClockFault::Step {
                        ns: stream.of(*step_us).saturating_mul(1000),
                    },
                    ClockKind::Skew => ClockFault::Skew {
                        ppm: stream.of(*ppm),
                    },
                    ClockKind::Stop => ClockFault::Stop,
                },
            },
            FaultModel::Stall { millis } => Fault::Stall {
                millis: stream.of(*millis).unsigned_abs(),
            },
            FaultModel::Slow { millis, boundaries } => Fault::Slow {
                millis: stream.of(*millis).unsigned_abs(),
                boundaries: stream.of(*boundaries).unsigned_abs(),
            },
            FaultModel::Hang => Fault::Hang,
            FaultModel::Crash => Fault::Crash,
            FaultModel::Syscall { errno } => Fault::Syscall {
                errno: stream.one(errno).copied().unwrap_or(5),
            },
            FaultModel::Entry { how } => Fault::Entry {
                how: stream.one(how).copied().unwrap_or(EntryFault::Lost),
                pick: stream.bits(),
            },
        }
    }

    /// A word by the number of its bits, then the bits in it: every single bit of all of them is alike.
    fn register(&self, bits: &Bits, stream: &mut Stream) -> Fault {
        let total = self.words.iter().map(|word| weight(*word)).sum();
        let mut number = stream.below(total);
        let mut found = Word {
            register: "",
            lane: 0,
            bits: 0,
        };
        for word in &self.words {
            if number < weight(*word) {
                found = *word;
                break;
            }
            number -= weight(*word);
        }
        Fault::Register {
            register: found.register.to_owned(),
            mask: bits::mask(bits, found.bits, stream),
            lane: found.lane,
            change: bits::change(bits, stream),
        }
    }

    fn place(&self, place: &Place, stream: &mut Stream) -> MemoryPlace {
        match place {
            Place::Ram => MemoryPlace::Ram {
                pick: stream.bits(),
            },
            Place::Classes(_) => MemoryPlace::Class {
                class: (*stream.one(&self.classes).unwrap_or(&"ram")).to_owned(),
                pick: stream.bits(),
            },
            Place::Named(names) => MemoryPlace::Named {
                place: stream.one(names).cloned().unwrap_or_default(),
            },
        }
    }
}

fn weight(word: Word) -> u64 {
    u64::from(word.bits.count_ones())
}
