//! From text to expression: words first, then by descent, as deep as is allowed and no deeper.

use super::{
    BadFilter, Expression, FILTER_BYTES_MAX, FILTER_DEPTH_MAX, Field, Literal, Number, Order,
};

#[derive(Debug, Clone, PartialEq)]
enum Word {
    /// A field's name or one of the language's own words: which of them, the place tells.
    Name(String),
    Number(Number),
    Text(String),
    Open,
    Close,
    Comma,
    Is,
    Differs,
    Order(Order),
    And,
    Or,
    End,
}

fn bad(problem: impl Into<String>, at: usize) -> BadFilter {
    BadFilter { problem: problem.into(), at }
}

pub(super) fn parse(text: &str) -> Result<Expression, BadFilter> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(bad(format!("it is longer than {FILTER_BYTES_MAX} bytes"), 1));
    }
    let mut parser = Parser { words: words(text)?, next: 0 };
    let expression = parser.any(0)?;
    match parser.peek() {
        Word::End => Ok(expression),
        _ => Err(parser.expected("and, or, or the end")),
    }
}

/// The words of a filter, each with the number of its first character.
fn words(text: &str) -> Result<Vec<(Word, usize)>, BadFilter> {
    let characters: Vec<_> = text.chars().collect();
    let (mut words, mut at) = (Vec::new(), 0);
    while let Some(&character) = characters.get(at) {
        let start = at;
        if character.is_whitespace() {
            at += 1;
            continue;
        }
        let rest = &characters[at..];
        let (word, length) = match character {
            '"' => quoted(rest, start + 1)?,
            '\'' => return Err(bad("texts stand in double quotes", start + 1)),
            '-' | '0'..='9' => number(rest, start + 1)?,
            'a'..='z' | 'A'..='Z' | '_' => name(rest),
            _ => sign(rest).ok_or_else(|| bad(format!("{character} means nothing"), start + 1))?,
        };
        words.push((word, start + 1));
        at += length;
    }
    words.push((Word::End, characters.len() + 1));
    Ok(words)
}

fn sign(rest: &[char]) -> Option<(Word, usize)> {
    let two = [rest[0], rest.get(1).copied().unwrap_or(' ')];
    let double = match two {
        ['=', '='] => Some(Word::Is),
        ['!', '='] => Some(Word::Differs),
        ['<', '='] => Some(Word::Order(Order::AtMost)),
        ['>', '='] => Some(Word::Order(Order::AtLeast)),
        ['&', '&'] => Some(Word::And),
        ['|', '|'] => Some(Word::Or),
        _ => None,
    };
    if let Some(word) = double {
        return Some((word, 2));
    }
    let word = match rest[0] {
        '(' => Word::Open,
        ')' => Word::Close,
        ',' => Word::Comma,
        '=' => Word::Is,
        '<' => Word::Order(Order::Below),
        '>' => Word::Order(Order::Above),
        _ => return None,
    };
    Some((word, 1))
}

fn name(rest: &[char]) -> (Word, usize) {
    let part = |character: &&char| {
        character.is_ascii_alphanumeric() || **character == '_' || **character == '.'
    };
    let name: String = rest.iter().take_while(part).collect();
    let length = name.len();
    let word = match () {
        () if name.eq_ignore_ascii_case("and") => Word::And,
        () if name.eq_ignore_ascii_case("or") => Word::Or,
        () => Word::Name(name),
    };
    (word, length)
}

fn number(rest: &[char], at: usize) -> Result<(Word, usize), BadFilter> {
    let part = |(index, character): &(usize, &char)| {
        let after_e = *index > 0 && matches!(rest[*index - 1], 'e' | 'E');
        character.is_ascii_digit()
            || matches!(character, '.' | 'e' | 'E')
            || (matches!(character, '+' | '-') && (*index == 0 || after_e))
    };
    let text: String =
        rest.iter().enumerate().take_while(part).map(|(_, character)| *character).collect();
    let whole = text.parse().ok().map(Number::Whole);
    let float = || text.parse::<f64>().ok().filter(|float| float.is_finite()).map(Number::Float);
    let number = whole.or_else(float);
    let number = number.ok_or_else(|| bad(format!("{text} is not a number"), at))?;
    Ok((Word::Number(number), text.len()))
}

/// A text in double quotes, in which `\"` and `\\` stand for a quote and a backslash.
fn quoted(rest: &[char], at: usize) -> Result<(Word, usize), BadFilter> {
    let (mut text, mut index) = (String::new(), 1);
    loop {
        match (rest.get(index), rest.get(index + 1)) {
            (Some('"'), _) => return Ok((Word::Text(text), index + 1)),
            (Some('\\'), Some(escaped @ ('"' | '\\'))) => {
                text.push(*escaped);
                index += 2;
            }
            (Some('\\'), _) => {
                return Err(bad("a backslash stands before a quote or a backslash", at + index));
            }
            (Some(character), _) => {
                text.push(*character);
                index += 1;
            }
            (None, _) => return Err(bad("this text is not closed", at)),
        }
    }
}

struct Parser {
    words: Vec<(Word, usize)>,
    next: usize,
}

impl Parser {
    /// The next word; the last is always [`Word::End`], and nobody takes that.
    fn peek(&self) -> &Word {
        &self.words[self.next].0
    }

    fn at(&self) -> usize {
        self.words[self.next].1
    }

    fn take(&mut self, word: &Word) -> bool {
        let is_it = self.peek() == word;
        self.next += usize::from(is_it);
        is_it
    }

    /// Takes one of the language's own words.
    fn take_name(&mut self, wanted: &str) -> bool {
        let is_it = matches!(self.peek(), Word::Name(name) if name.eq_ignore_ascii_case(wanted));
        self.next += usize::from(is_it);
        is_it
    }

    fn expected(&self, what: &str) -> BadFilter {
        bad(format!("expected {what}"), self.at())
    }

    fn any(&mut self, depth: usize) -> Result<Expression, BadFilter> {
        let mut parts = vec![self.all(depth)?];
        while self.take(&Word::Or) {
            parts.push(self.all(depth)?);
        }
        Ok(one_or(parts, Expression::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Expression, BadFilter> {
        let mut parts = vec![self.one(depth)?];
        while self.take(&Word::And) {
            parts.push(self.one(depth)?);
        }
        Ok(one_or(parts, Expression::All))
    }

    fn one(&mut self, depth: usize) -> Result<Expression, BadFilter> {
        let nested = |parser: &Self| {
            let problem = format!("nested deeper than {FILTER_DEPTH_MAX}");
            if depth == FILTER_DEPTH_MAX { Err(bad(problem, parser.at())) } else { Ok(depth + 1) }
        };
        if self.take_name("not") {
            let depth = nested(self)?;
            return Ok(Expression::Not(Box::new(self.one(depth)?)));
        }
        if self.take(&Word::Open) {
            let depth = nested(self)?;
            let inner = self.any(depth)?;
            return if self.take(&Word::Close) { Ok(inner) } else { Err(self.expected(")")) };
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expression, BadFilter> {
        let field = self.field()?;
        if self.take_name("exists") {
            return Ok(Expression::Exists(field));
        }
        if self.take_name("in") {
            return Ok(Expression::Is(field, self.list()?));
        }
        let word = self.peek().clone();
        match word {
            Word::Is => {
                self.next += 1;
                Ok(Expression::Is(field, vec![self.value()?]))
            }
            Word::Differs => {
                self.next += 1;
                Ok(Expression::Differs(field, self.value()?))
            }
            Word::Order(order) => {
                self.next += 1;
                let Word::Number(number) = *self.peek() else {
                    return Err(self.expected("a number"));
                };
                self.next += 1;
                Ok(Expression::Order(field, order, number))
            }
            _ => Err(self.expected("=, !=, <, <=, >, >=, in or exists")),
        }
    }

    fn field(&mut self) -> Result<Field, BadFilter> {
        let Word::Name(name) = self.peek() else {
            return Err(self.expected("a field, such as data.amount"));
        };
        let field = field_of(name, self.at())?;
        self.next += 1;
        Ok(field)
    }

    fn list(&mut self) -> Result<Vec<Literal>, BadFilter> {
        if !self.take(&Word::Open) {
            return Err(self.expected("( and values"));
        }
        let mut values = vec![self.value()?];
        while self.take(&Word::Comma) {
            values.push(self.value()?);
        }
        if self.take(&Word::Close) { Ok(values) } else { Err(self.expected("a comma or )")) }
    }

    fn value(&mut self) -> Result<Literal, BadFilter> {
        let value = match self.peek() {
            Word::Number(number) => Some(Literal::Number(*number)),
            Word::Text(text) => Some(Literal::Text(text.clone())),
            Word::Name(name) => match &*name.to_ascii_lowercase() {
                "true" => Some(Literal::Bool(true)),
                "false" => Some(Literal::Bool(false)),
                "null" => Some(Literal::Null),
                _ => None,
            },
            _ => None,
        };
        let what = "a value: a number, a text in double quotes, true, false or null";
        let value = value.ok_or_else(|| self.expected(what))?;
        self.next += 1;
        Ok(value)
    }
}

fn one_or(mut parts: Vec<Expression>, all: fn(Vec<Expression>) -> Expression) -> Expression {
    if parts.len() == 1 { parts.remove(0) } else { all(parts) }
}

fn field_of(name: &str, at: usize) -> Result<Field, BadFilter> {
    let (first, path) = match name.split_once('.') {
        Some((first, path)) => (first, Some(path)),
        None => (name, None),
    };
    let place = |path: &str| {
        let mut within = at + first.len() + 1;
        for part in path.split('.') {
            if part.is_empty() {
                return Err(bad("expected a name behind the point", within));
            }
            within += part.len() + 1;
        }
        Ok(path.split('.').map(str::to_owned).collect())
    };
    match (first, path) {
        ("data", Some(path)) => Ok(Field::Data(place(path)?)),
        ("metadata", Some(path)) => Ok(Field::Metadata(place(path)?)),
        ("event_type", None) => Ok(Field::EventType),
        ("aggregate_type", None) => Ok(Field::AggregateType),
        ("aggregate_id", None) => Ok(Field::AggregateId),
        ("aggregate_version", None) => Ok(Field::AggregateVersion),
        ("version", None) => Ok(Field::Version),
        ("correlation_id", None) => Ok(Field::CorrelationId),
        ("causation_id", None) => Ok(Field::CausationId),
        _ => {
            let fields = "event_type, aggregate_type, aggregate_id, aggregate_version, version, \
                          correlation_id and causation_id";
            Err(bad(format!("fields are {fields}, or begin with data. or metadata."), at))
        }
    }
}
