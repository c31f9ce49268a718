//! Within which bounds a number may be.

use std::fmt;

/// From the least to the most, and perhaps one number more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    least: i64,
    most: i64,
    /// It may lie outside, and has a meaning of its own.
    special: Option<(i64, &'static str)>,
    power_of_two: bool,
}

impl Bounds {
    pub(super) const fn new(least: i64, most: i64) -> Self {
        Self { least, most, special: None, power_of_two: false }
    }

    pub(super) const fn or(self, number: i64, meaning: &'static str) -> Self {
        Self { special: Some((number, meaning)), ..self }
    }

    pub(super) const fn power_of_two(self) -> Self {
        Self { power_of_two: true, ..self }
    }

    /// The least and the most.
    pub const fn range(self) -> (i64, i64) {
        (self.least, self.most)
    }

    /// Refuses what lies outside.
    pub fn check(self, number: i64) -> Result<(), Refused> {
        let is_special = self.special.is_some_and(|(special, _)| special == number);
        let is_within = (self.least..=self.most).contains(&number)
            && (!self.power_of_two || number.count_ones() == 1);
        if is_special || is_within { Ok(()) } else { Err(Refused(self)) }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most, special, power_of_two } = self;
        if *power_of_two {
            write!(f, "a power of two ")?;
        }
        write!(f, "from {least} to {most}")?;
        match special {
            Some((number, meaning)) => write!(f, ", or {number} for {meaning}"),
            None => Ok(()),
        }
    }
}

/// A number lies outside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(Bounds);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "must be {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_is_refused_with_what_would_be_right() {
        let told = |bounds: Bounds, number| bounds.check(number).map_err(|error| error.to_string());
        let plain = Bounds::new(1, 127);
        assert_eq!([1, 127].map(|number| told(plain, number)), [Ok(()), Ok(())]);
        assert_eq!(told(plain, 0), Err("must be from 1 to 127".to_owned()));
        assert_eq!(told(plain, 128), Err("must be from 1 to 127".to_owned()));
        let never = Bounds::new(1000, 5000).or(0, "never");
        assert_eq!([0, 1000].map(|number| told(never, number)), [Ok(()), Ok(())]);
        assert_eq!(told(never, 1), Err("must be from 1000 to 5000, or 0 for never".to_owned()));
        let power = Bounds::new(1, 32_768).power_of_two();
        assert_eq!([1, 1024, 32_768].map(|number| told(power, number)), [Ok(()), Ok(()), Ok(())]);
        assert_eq!(told(power, 1000), Err("must be a power of two from 1 to 32768".to_owned()));
    }
}
