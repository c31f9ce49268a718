//! Bar charts as SVG: the pictures of the benchmarks.
//!
//! A [`Chart`] has groups of bars, one bar a [`Series`] in each group, and writes its value beside
//! every bar. Everything stands on white, so that it can be read on a dark page too.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, Color, DrawingArea, IntoDrawingArea, IntoFont, PathElement, RGBColor, Rectangle,
    SVGBackend, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{ShapeStyle, TextStyle};

/// Told apart by people who do not see all colours, too: Okabe and Ito,
/// <https://jfly.uni-koeln.de/color/>.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(240, 228, 66),
];
const GRID: RGBColor = RGBColor(215, 215, 215);
const FONT: &str = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif";

// Lengths in pixels.
const WIDTH: i32 = 960;
/// Text of the labels; a character is about 0.6 of it wide.
const TEXT: i32 = 13;
const CHARACTER: i32 = 8;
const TITLE: i32 = 19;
const HEADER: i32 = 44;
const CHART_TITLE: i32 = 30;
const LEGEND_LINE: i32 = 22;
const BAR: i32 = 17;
const BETWEEN_GROUPS: i32 = 14;
const AXIS: i32 = 58;
const EDGE: i32 = 16;
/// Room for the value beside the longest bar.
const VALUE: i32 = 90;
/// About so many ticks on a linear axis.
const TICKS: f64 = 6.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// How the length of a bar follows from its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0.
    Linear,
    /// From the power of ten below the smallest value; every value is greater than 0.
    Logarithmic,
}

/// One chart of a picture.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What is compared.
    pub title: String,
    /// What the axis shows, with its unit, and whether more or less is better.
    pub axis: String,
    /// The axis.
    pub scale: Scale,
    /// Names of the groups, from the top.
    pub groups: Vec<String>,
    /// Bars of each group, from the top.
    pub series: Vec<Series>,
}

/// The bars of one colour.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// One a group; nothing where nothing was measured.
    pub values: Vec<Option<f64>>,
}

/// Collects the values of a [`Chart`] one by one.
#[derive(Clone, Debug, Default)]
pub struct Bars {
    groups: Vec<String>,
    series: Vec<Series>,
}

impl Bars {
    /// Adds a value; groups and series stand in the order of their first values.
    pub fn add(&mut self, group: &str, series: &str, value: f64) {
        let place = self.groups.iter().position(|name| name == group).unwrap_or_else(|| {
            self.groups.push(group.to_owned());
            self.groups.len() - 1
        });
        let known = self.series.iter().position(|known| known.name == series);
        let known = known.unwrap_or_else(|| {
            self.series.push(Series { name: series.to_owned(), values: Vec::new() });
            self.series.len() - 1
        });
        let values = &mut self.series[known].values;
        values.resize(values.len().max(place + 1), None);
        values[place] = Some(value);
    }

    /// The chart of all values.
    pub fn chart(mut self, title: &str, axis: &str, scale: Scale) -> Chart {
        for series in &mut self.series {
            series.values.resize(self.groups.len(), None);
        }
        let (title, axis) = (title.to_owned(), axis.to_owned());
        Chart { title, axis, scale, groups: self.groups, series: self.series }
    }
}

/// Draws charts below each other into a file.
pub fn write(path: &Path, title: &str, charts: &[Chart]) -> Result<()> {
    ensure!(!charts.is_empty(), "a picture of no chart");
    for chart in charts {
        chart.check()?;
    }
    let height = HEADER + charts.iter().map(Chart::height).sum::<i32>();
    let size = (pixels(WIDTH), pixels(height));
    let root = SVGBackend::new(path, size).into_drawing_area();
    let drawn = draw(&root, title, charts).and_then(|()| done(root.present()));
    drawn.with_context(|| format!("cannot draw {}", path.display()))
}

fn draw(root: &Area<'_>, title: &str, charts: &[Chart]) -> Result<()> {
    done(root.fill(&WHITE))?;
    write_text(root, title, (EDGE, HEADER / 2), TITLE, HPos::Left)?;
    let mut rest = root.split_vertically(HEADER).1;
    for chart in charts {
        let (area, after) = rest.split_vertically(chart.height());
        chart.draw(&area)?;
        rest = after;
    }
    Ok(())
}

impl Chart {
    fn check(&self) -> Result<()> {
        let title = &self.title;
        ensure!(!self.groups.is_empty() && !self.series.is_empty(), "nothing in chart `{title}`");
        for series in &self.series {
            let (name, values) = (&series.name, &series.values);
            ensure!(
                values.len() == self.groups.len(),
                "series `{name}` of chart `{title}` has {} values for {} groups",
                values.len(),
                self.groups.len()
            );
            let fits = |value: f64| self.scale == Scale::Linear || value > 0.0;
            ensure!(
                values.iter().flatten().all(|value| value.is_finite() && fits(*value)),
                "series `{name}` of chart `{title}` has values that its axis does not: {values:?}"
            );
        }
        Ok(())
    }

    fn height(&self) -> i32 {
        CHART_TITLE + self.legend().1 + count(self.groups.len()) * self.group_height() + AXIS
    }

    fn group_height(&self) -> i32 {
        count(self.series.len()) * BAR + BETWEEN_GROUPS
    }

    /// Place of each series' entry, and the legend's height. One series needs none.
    fn legend(&self) -> (Vec<(i32, i32)>, i32) {
        if self.series.len() == 1 {
            return (Vec::new(), 0);
        }
        let (mut x, mut y) = (EDGE, 0);
        let mut places = Vec::new();
        for series in &self.series {
            let wide = 20 + count(series.name.chars().count()) * CHARACTER + 16;
            if x > EDGE && x + wide > WIDTH - EDGE {
                (x, y) = (EDGE, y + LEGEND_LINE);
            }
            places.push((x, y));
            x += wide;
        }
        (places, y + LEGEND_LINE)
    }

    /// Where the axis begins: right of the longest group's name.
    fn left(&self) -> i32 {
        let longest = self.groups.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        (EDGE + count(longest) * CHARACTER + 10).min(WIDTH / 2)
    }

    fn draw(&self, area: &Area<'_>) -> Result<()> {
        write_text(area, &self.title, (EDGE, CHART_TITLE / 2), TEXT + 2, HPos::Left)?;
        let (places, legend_height) = self.legend();
        for (index, (x, y)) in places.into_iter().enumerate() {
            let middle = CHART_TITLE + y + LEGEND_LINE / 2;
            let square = [(x, middle - 6), (x + 12, middle + 6)];
            done(area.draw(&Rectangle::new(square, colour(index).filled())))?;
            write_text(area, &self.series[index].name, (x + 18, middle), TEXT, HPos::Left)?;
        }
        let axis = Axis::of(self);
        let zero = axis.zero();
        let top = CHART_TITLE + legend_height;
        let bottom = top + count(self.groups.len()) * self.group_height();
        axis.draw(area, top, bottom, &self.axis)?;
        for (index, name) in self.groups.iter().enumerate() {
            let y = top + count(index) * self.group_height();
            let middle = y + self.group_height() / 2;
            write_text(area, name, (axis.left - 8, middle), TEXT, HPos::Right)?;
            for (place, series) in self.series.iter().enumerate() {
                let y = y + BETWEEN_GROUPS / 2 + count(place) * BAR;
                if let Some(value) = series.values[index] {
                    let end = axis.place(value);
                    let bar = [(zero.min(end), y + 1), (zero.max(end), y + BAR - 1)];
                    done(area.draw(&Rectangle::new(bar, colour(place).filled())))?;
                    let beside = (zero.max(end) + 5, y + BAR / 2);
                    write_text(area, &shown(value), beside, TEXT - 1, HPos::Left)?;
                }
            }
        }
        line(area, [(zero, top), (zero, bottom)], BLACK.stroke_width(1))
    }
}

/// From values to places.
struct Axis {
    scale: Scale,
    left: i32,
    /// Of the axis, transformed.
    first: f64,
    /// Of the axis, transformed.
    last: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(chart: &Chart) -> Self {
        let values = || chart.series.iter().flat_map(|series| &series.values).flatten().copied();
        let most = match values().fold(0.0, f64::max) {
            0.0 => 1.0,
            most => most,
        };
        let (first, last, ticks) = match chart.scale {
            Scale::Linear => {
                // A difference of two measurements may be below 0.
                let least = values().fold(0.0, f64::min);
                let step = nice_step((most - least) / TICKS);
                let first = (least / step).floor();
                let mut ticks = vec![first * step];
                while ticks.last().is_some_and(|last| *last < most) {
                    // By multiplying: sums of 0.1 do not look like it.
                    ticks.push(step * (first + f64::from(count(ticks.len()))));
                }
                (first * step, ticks.last().copied().unwrap_or(most), ticks)
            }
            Scale::Logarithmic => {
                let smallest = values().fold(f64::MAX, f64::min).min(most);
                let first = smallest.log10().floor();
                let last = most.log10().ceil().max(first + 1.0);
                let mut ticks = vec![first];
                while ticks.last().is_some_and(|tick| *tick < last) {
                    ticks.push(first + f64::from(count(ticks.len())));
                }
                (first, last, ticks.into_iter().map(|tick| 10_f64.powf(tick)).collect())
            }
        };
        Self { scale: chart.scale, left: chart.left(), first, last, ticks }
    }

    fn place(&self, value: f64) -> i32 {
        let transformed = match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic => value.log10(),
        };
        let part = (transformed - self.first) / (self.last - self.first);
        #[allow(clippy::cast_possible_truncation, reason = "a part of the picture's width")]
        let length = (f64::from(WIDTH - EDGE - VALUE - self.left) * part).round() as i32;
        self.left + length
    }

    /// Where bars begin.
    fn zero(&self) -> i32 {
        match self.scale {
            Scale::Linear => self.place(0.0),
            Scale::Logarithmic => self.left,
        }
    }

    fn draw(&self, area: &Area<'_>, top: i32, bottom: i32, label: &str) -> Result<()> {
        for tick in &self.ticks {
            let x = self.place(*tick);
            line(area, [(x, top), (x, bottom + 4)], GRID.stroke_width(1))?;
            write_text(area, &shown(*tick), (x, bottom + 14), TEXT - 1, HPos::Center)?;
        }
        write_text(area, label, (self.left, bottom + 34), TEXT, HPos::Left)
    }
}

/// The next of 1, 2, 5, 10, …
fn nice_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

/// Three digits, or all of a number above 1000, with commas.
fn shown(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if value < 0.0 {
        return format!("-{}", shown(-value));
    }
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.1.. => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match decimals.trim_end_matches('0') {
        "" => grouped,
        decimals => format!("{grouped}.{decimals}"),
    }
}

fn colour(series: usize) -> RGBColor {
    COLOURS[series % COLOURS.len()]
}

fn line(area: &Area<'_>, ends: [(i32, i32); 2], style: ShapeStyle) -> Result<()> {
    done(area.draw(&PathElement::new(ends, style)))
}

fn write_text(area: &Area<'_>, words: &str, at: (i32, i32), size: i32, anchor: HPos) -> Result<()> {
    let style = TextStyle::from((FONT, size).into_font()).pos(Pos::new(anchor, VPos::Center));
    done(area.draw(&Text::new(words.to_owned(), at, style)))
}

/// The backend's errors borrow it.
fn done<T>(result: Result<T, impl std::fmt::Display>) -> Result<T> {
    result.map_err(|error| anyhow!("{error}"))
}

fn count(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

fn pixels(length: i32) -> u32 {
    u32::try_from(length).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, values: &[Option<f64>]) -> Chart {
        let groups = (0..values.len()).map(|index| format!("group {index}")).collect();
        let series = ["first", "second"]
            .map(|name| Series { name: name.to_owned(), values: values.to_vec() });
        let (title, axis) = ("a < b".to_owned(), "µs; less is better".to_owned());
        Chart { title, axis, scale, groups, series: series.into() }
    }

    #[test]
    fn a_picture_has_every_word_and_every_bar() {
        let path = std::env::temp_dir().join(format!("millrace-plot-{}.svg", std::process::id()));
        let charts = [
            chart(Scale::Linear, &[Some(0.0), Some(12_345.0), None]),
            chart(Scale::Logarithmic, &[Some(0.5), Some(2_000.0), None]),
        ];
        write(&path, "title", &charts).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for word in ["title", "a &lt; b", "group 2", "second", "12,345", "0.5", "10,000"] {
            assert!(svg.contains(word), "no `{word}`");
        }
        for colour in ["#0072B2", "#E69F00"] {
            // One in the legend and two bars, in each chart.
            assert_eq!(svg.matches(colour).count(), 6, "{colour}");
        }
    }

    #[test]
    fn values_find_their_places() {
        let mut bars = Bars::default();
        for (group, series, value) in [("a", "x", 1.0), ("b", "y", 2.0), ("a", "y", 3.0)] {
            bars.add(group, series, value);
        }
        let chart = bars.chart("", "", Scale::Linear);
        assert_eq!(chart.groups, ["a", "b"]);
        let values: Vec<_> = chart.series.iter().map(|series| series.values.clone()).collect();
        assert_eq!(values, [[Some(1.0), None], [Some(3.0), Some(2.0)]]);
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let path = Path::new("/nowhere/plot.svg");
        for values in [vec![Some(f64::NAN)], vec![Some(f64::INFINITY)], vec![]] {
            assert!(write(path, "", &[chart(Scale::Linear, &values)]).is_err());
        }
        for value in [0.0, -1.0] {
            let error = write(path, "", &[chart(Scale::Logarithmic, &[Some(value)])]).unwrap_err();
            assert!(error.to_string().contains("its axis does not"), "{error}");
        }
        let error = write(path, "", &[chart(Scale::Linear, &[Some(1.0)])]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/plot.svg"), "{error}");
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let linear = Axis::of(&chart(Scale::Linear, &[Some(30.0), Some(57.0)]));
        assert_eq!(linear.ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        let length = |value| linear.place(value) - linear.left;
        assert_eq!((length(0.0), length(60.0)), (0, 2 * length(30.0)));
        assert_eq!(Axis::of(&chart(Scale::Linear, &[Some(0.0)])).ticks.len(), 6);
        let below = Axis::of(&chart(Scale::Linear, &[Some(-12.0), Some(38.0)]));
        assert_eq!(below.ticks, [-20.0, -10.0, 0.0, 10.0, 20.0, 30.0, 40.0]);
        let (left, right) = (below.zero() - below.left, below.place(20.0) - below.zero());
        assert!(left > 0 && left.abs_diff(right) <= 1, "{left} and {right} pixels");
        let log = Axis::of(&chart(Scale::Logarithmic, &[Some(3.0), Some(900.0)]));
        assert_eq!((log.first, log.last), (0.0, 3.0));
    }

    #[test]
    fn numbers_are_short() {
        let pairs =
            [(0.0, "0"), (0.0123, "0.0123"), (1.5, "1.5"), (99.94, "99.9"), (-1e6, "-1,000,000")];
        for (value, text) in pairs {
            assert_eq!(shown(value), text);
        }
    }
}
