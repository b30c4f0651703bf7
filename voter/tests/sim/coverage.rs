//! How often the interesting things happened. A simulator that no longer meets the difficult cases proves nothing.

macro_rules! coverage {
    ($($name:ident),* $(,)?) => {
        /// Counts, over all seeds.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Coverage {
            $(pub $name: u64,)*
        }

        impl Coverage {
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// How often each was seen, by name.
            pub fn counts(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

coverage!(
    releases,
    outvoted,
    lagging,
    repeatedly,
    crashed,
    misbehaved,
    degraded,
    too_few,
    split,
    stalled,
    window_full,
    lost_races,
    late_outvoted,
    recovered,
    replayed,
    relapsed,
    disputed,
    majority,
    removed,
    membership,
    fresh,
    gone,
);
