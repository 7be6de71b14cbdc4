//! `-S`: which rows of a report count.
//!
//! Grammar: comparisons joined by `&&` or `,` (tighter) and `||` or `#`, parentheses, `!` before a parenthesis.
//! Comparisons: `=` `!=` for all fields, `<` `<=` `>` `>=` for numbers, `=~` `!~` for regular expressions.

use regex_lite::Regex;

use super::console::Console;
use super::fields::{self, Field, Row};

/// A parsed selection.
#[derive(Debug)]
pub struct Selection(Node);

#[derive(Debug)]
enum Node {
    Item(Comparison),
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
}

#[derive(Debug)]
struct Comparison {
    field: &'static Field,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Text { value: String, negated: bool },
    Number { value: u64, order: Order },
    Pattern { pattern: Regex, negated: bool },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// In the order tried: the longer spelling of two first.
const OPERATORS: &[(&str, Operator)] = &[
    ("=~", Operator::Pattern { negated: false }),
    ("!~", Operator::Pattern { negated: true }),
    ("=", Operator::Order(Order::Equal)),
    ("!=", Operator::Order(Order::NotEqual)),
    (">=", Operator::Order(Order::GreaterOrEqual)),
    (">", Operator::Order(Order::Greater)),
    ("<=", Operator::Order(Order::LessOrEqual)),
    ("<", Operator::Order(Order::Less)),
];

#[derive(Clone, Copy)]
enum Operator {
    Pattern { negated: bool },
    Order(Order),
}

/// What ends an unquoted value.
const LOGICAL: &[&str] = &["&&", ",", "||", "#", ")"];

impl Selection {
    /// Parses; `None` for an empty selection, which lets all rows through. Errors have been printed.
    pub fn parse(text: &str, console: &mut Console<'_>) -> Result<Option<Self>, ()> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        let mut parser = Parser {
            rest: text,
            console,
        };
        let node = parser.any_of()?;
        if !parser.skip_space().is_empty() {
            let rest = parser.rest.to_owned();
            parser.console.error("Expecting logical operator");
            return parser.syntax_error(&rest);
        }
        Ok(Some(Self(node)))
    }

    /// What `-S help` shows.
    pub fn print_help(console: &mut Console<'_>) {
        fields::print_fields(console, true);
        print_help(console);
    }

    /// Whether the row is selected.
    pub fn matches(&self, row: &Row) -> bool {
        self.0.matches(row)
    }

    /// The fields it looks at.
    pub fn fields(&self) -> Vec<&'static Field> {
        let mut fields = Vec::new();
        self.0.collect_fields(&mut fields);
        fields
    }
}

impl Node {
    fn matches(&self, row: &Row) -> bool {
        match self {
            Self::Item(comparison) => comparison.matches(row),
            Self::All(nodes) => nodes.iter().all(|node| node.matches(row)),
            Self::Any(nodes) => nodes.iter().any(|node| node.matches(row)),
            Self::Not(node) => !node.matches(row),
        }
    }

    fn collect_fields(&self, fields: &mut Vec<&'static Field>) {
        match self {
            Self::Item(comparison) => fields.push(comparison.field),
            Self::All(nodes) | Self::Any(nodes) => {
                nodes.iter().for_each(|node| node.collect_fields(fields));
            }
            Self::Not(node) => node.collect_fields(fields),
        }
    }
}

impl Comparison {
    fn matches(&self, row: &Row) -> bool {
        let actual = row.value(self.field);
        match &self.test {
            Test::Text { value, negated } => (actual == value) != *negated,
            Test::Pattern { pattern, negated } => pattern.is_match(actual) != *negated,
            Test::Number { value, order } => {
                let actual: u64 = actual.parse().unwrap_or(0);
                match order {
                    Order::Equal => actual == *value,
                    Order::NotEqual => actual != *value,
                    Order::Less => actual < *value,
                    Order::LessOrEqual => actual <= *value,
                    Order::Greater => actual > *value,
                    Order::GreaterOrEqual => actual >= *value,
                }
            }
        }
    }
}

struct Parser<'a, 'c, 'd> {
    rest: &'a str,
    console: &'c mut Console<'d>,
}

impl<'a> Parser<'a, '_, '_> {
    fn skip_space(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        self.rest
    }

    fn take(&mut self, tokens: &[&str]) -> bool {
        let rest = self.skip_space();
        let found = tokens.iter().find_map(|token| rest.strip_prefix(token));
        if let Some(tail) = found {
            self.rest = tail;
        }
        found.is_some()
    }

    fn any_of(&mut self) -> Result<Node, ()> {
        let mut nodes = vec![self.all_of()?];
        while self.take(&["||", "#"]) {
            nodes.push(self.all_of()?);
        }
        Ok(Node::Any(nodes))
    }

    fn all_of(&mut self) -> Result<Node, ()> {
        let mut nodes = vec![self.single()?];
        while self.take(&["&&", ","]) {
            nodes.push(self.single()?);
        }
        Ok(Node::All(nodes))
    }

    fn single(&mut self) -> Result<Node, ()> {
        let negated = self.take(&["!"]);
        if !self.take(&["("]) {
            if negated {
                let rest = self.rest.to_owned();
                let text = format!("Syntax error: left parenthesis expected at '{rest}'");
                self.console.error(&text);
                return Err(());
            }
            return self.comparison().map(Node::Item);
        }
        let node = self.any_of()?;
        if !self.take(&[")"]) {
            let rest = self.rest.to_owned();
            let text = format!("Syntax error: right parenthesis expected at '{rest}'");
            self.console.error(&text);
            return Err(());
        }
        Ok(if negated {
            Node::Not(Box::new(node))
        } else {
            node
        })
    }

    fn comparison(&mut self) -> Result<Comparison, ()> {
        let start = self.skip_space();
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let end = start.find(|c| !is_name(c)).unwrap_or(start.len());
        let (name, rest) = start.split_at(end);
        if name.is_empty() {
            self.console.error("Expecting field name");
            return self.syntax_error(start);
        }
        let [field] = fields::find(name)[..] else {
            fields::print_fields(self.console, true);
            self.console
                .error(&format!("Unrecognised selection field: {name}"));
            return self.syntax_error(start);
        };
        self.rest = rest.trim_start();
        let found = OPERATORS
            .iter()
            .find_map(|(spelling, operator)| Some((*operator, self.rest.strip_prefix(spelling)?)));
        let Some((operator, value)) = found else {
            print_help(self.console);
            let text = format!("Unrecognised comparison operator: {}", self.rest);
            self.console.error(&text);
            return self.syntax_error(start);
        };
        self.rest = value.trim_start();
        let number_only = match operator {
            Operator::Order(order) => !matches!(order, Order::Equal | Order::NotEqual),
            Operator::Pattern { .. } => false,
        };
        if number_only && !field.numeric {
            print_help(self.console);
            self.console.error(&format!(
                "Operator can be used only with number, size, time or percent fields: {start}"
            ));
            return self.syntax_error(start);
        }
        let value = self.value(field, start)?;
        let test = self.test(field, operator, value, start)?;
        Ok(Comparison { field, test })
    }

    fn test(
        &mut self,
        field: &Field,
        operator: Operator,
        value: String,
        start: &str,
    ) -> Result<Test, ()> {
        match operator {
            Operator::Pattern { negated } => match Regex::new(&value) {
                Ok(pattern) => Ok(Test::Pattern { pattern, negated }),
                Err(_) => {
                    self.console.error("Couldn't parse regex");
                    self.console.error(&format!(
                        "dm_report: failed to create regex matcher for selection field {}",
                        field.id
                    ));
                    Err(())
                }
            },
            Operator::Order(order) if field.numeric => match value.parse() {
                Ok(value) => Ok(Test::Number { value, order }),
                Err(_) => {
                    let text = format!(
                        "Failed to parse numeric value for selection field {}.",
                        field.id
                    );
                    self.console.error(&text);
                    self.syntax_error(start)
                }
            },
            Operator::Order(order) => Ok(Test::Text {
                value,
                negated: order == Order::NotEqual,
            }),
        }
    }

    /// A quoted text, or one that ends at space or a logical operator.
    fn value(&mut self, field: &Field, start: &str) -> Result<String, ()> {
        for quote in ['"', '\''] {
            let Some(rest) = self.rest.strip_prefix(quote) else {
                continue;
            };
            let Some((value, tail)) = rest.split_once(quote) else {
                self.console.error("Missing end quote.");
                self.console.error(&format!(
                    "Failed to parse string value for selection field {}.",
                    field.id
                ));
                return self.syntax_error(start);
            };
            self.rest = tail;
            return Ok(value.to_owned());
        }
        let ends = |at: usize| {
            let rest = self.rest.get(at..).unwrap_or_default();
            rest.starts_with(' ') || LOGICAL.iter().any(|token| rest.starts_with(token))
        };
        let end = self
            .rest
            .char_indices()
            .map(|(at, _)| at)
            .find(|at| ends(*at));
        let (value, tail) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = tail;
        Ok(value.to_owned())
    }

    fn syntax_error<T>(&mut self, at: &str) -> Result<T, ()> {
        self.console
            .error(&format!("Selection syntax error at '{at}'."));
        self.console
            .error("Use 'help' for selection to get more help.");
        Err(())
    }
}

fn print_help(console: &mut Console<'_>) {
    HELP.lines().for_each(|line| console.error(line));
}

const HELP: &str = "\
Selection operands
------------------
  field               - Reporting field.
  number              - Non-negative integer value.
  string              - Characters quoted by ' or \" or unquoted.
  regular expression  - Characters quoted by ' or \" or unquoted.
\x20
Selection operators
-------------------
  Comparison operators:
        =~  - Matching regular expression. [regex]
        !~  - Not matching regular expression. [regex]
         =  - Equal to. [number, string]
        !=  - Not equal to. [number, string]
        >=  - Greater than or equal to. [number]
         >  - Greater than. [number]
        <=  - Less than or equal to. [number]
         <  - Less than. [number]
\x20
  Logical and grouping operators:
      &&  - All fields must match
       ,  - All fields must match
      ||  - At least one field must match
       #  - At least one field must match
       !  - Logical negation
       (  - Left parenthesis
       )  - Right parenthesis
\x20";

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(text: &str, row: &Row) -> Result<bool, String> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut console = Console {
            out: &mut out,
            err: &mut err,
        };
        match Selection::parse(text, &mut console) {
            Ok(selection) => Ok(selection.is_none_or(|selection| selection.matches(row))),
            Err(()) => Err(String::from_utf8(err).unwrap()),
        }
    }

    #[test]
    fn comparisons_and_logic() {
        let mut row = Row::default();
        row.set("name", "pool-1");
        row.set("open", 3);
        for (text, expected) in [
            ("name=pool-1", true),
            ("name != pool-1", false),
            ("open>2 && name=~^pool", true),
            ("open>2,open<3", false),
            ("open=9 || name='pool-1'", true),
            ("open<=3&&(name=x||open>=3)", true),
            ("!(name=pool-1)", false),
            ("name!~ol", false),
            ("", true),
        ] {
            assert_eq!(selects(text, &row), Ok(expected), "{text}");
        }
    }

    #[test]
    fn errors_say_where() {
        let error = |text| selects(text, &Row::default()).unwrap_err();
        assert!(
            error("foo=1")
                .contains("Unrecognised selection field: foo\nSelection syntax error at 'foo=1'.")
        );
        assert!(error("name~1").contains("Unrecognised comparison operator: ~1\n"));
        assert!(
            error("name=1 (")
                .contains("Expecting logical operator\nSelection syntax error at '('.")
        );
        assert!(error("name>v").contains("Operator can be used only with number"));
        assert!(error("!name=v").contains("left parenthesis expected at 'name=v'"));
        assert!(error("(name=v").contains("right parenthesis expected at ''"));
        assert!(error("name='v").contains("Missing end quote."));
        assert!(error("open=x").contains("Failed to parse numeric value"));
    }
}
