package jsonb

// checkSize rejects what PostgreSQL's jsonb does not hold.
func (e *Encoder) checkSize() {
	if problem := e.sizeProblem(e.out); problem != "" {
		panic(&RejectError{Reason: problem, capsule: CapsuleSize})
	}
}

// sizeProblem tells why jsonb does not hold a text, "" if it does. Its binary
// form is at most six times as long as the text (an array of digits), so that
// only a very long text has to be measured.
func (e *Encoder) sizeProblem(text []byte) string {
	if len(text) < e.most/8 {
		return ""
	}
	m := measure{text: text, most: e.most}
	if size := m.value(); size > e.most && m.problem == "" {
		return "its state takes more than 256 MiB in jsonb"
	}
	return m.problem
}

const (
	// maxJSONB is the longest contents of one array or object in jsonb.
	maxJSONB = 1<<28 - 1
	// maxElements and maxPairs are what PostgreSQL's parser holds of one array
	// or object: it doubles its memory, up to a gigabyte.
	maxElements = 1 << 24
	maxPairs    = 1 << 23
)

// measure computes the size of jsonb from its text, which is valid.
type measure struct {
	text    []byte
	most    int // maxJSONB
	pos     int
	problem string
}

// value returns the bytes of a value in the container that holds it. Alignment
// is taken at its worst.
func (m *measure) value() int {
	switch m.text[m.pos] {
	case '{', '[':
		return m.container()
	case '"':
		return m.stringSize()
	case 't', 'n':
		m.pos += 4
		return 0
	case 'f':
		m.pos += 5
		return 0
	}
	from := m.pos
	for m.pos < len(m.text) {
		switch m.text[m.pos] {
		case ',', ']', '}':
			return numericSize(m.text[from:m.pos])
		}
		m.pos++
	}
	return numericSize(m.text[from:])
}

// numericSize is about the size of a number: a header, two bytes for four
// digits, and padding. An exponent of ours means up to 324 digits.
func numericSize(text []byte) int {
	size := 16 + len(text)/2
	for _, c := range text {
		if c == 'e' {
			return size + 170
		}
	}
	return size
}

func (m *measure) stringSize() int {
	m.pos++
	size := 0
	for m.text[m.pos] != '"' {
		if m.text[m.pos] == '\\' {
			m.pos++
			if m.text[m.pos] == 'u' {
				m.pos += 4
			}
		}
		m.pos++
		size++
	}
	m.pos++
	return size
}

// container measures an array or object. Nesting is bounded by maxDepth.
func (m *measure) container() int {
	open := m.text[m.pos]
	m.pos++
	size, entries, commas := 0, 0, 0
	for m.text[m.pos] != ']' && m.text[m.pos] != '}' {
		switch m.text[m.pos] {
		case ',', ':':
			if m.text[m.pos] == ',' {
				commas++
			}
			m.pos++
			continue
		}
		size += m.value() + 4 // and its entry in the directory
		entries++
	}
	m.pos++
	switch {
	case size > m.most:
		m.problem = "an array or object in it takes more than 256 MiB in jsonb"
	case open == '[' && entries > maxElements:
		m.problem = "an array in it has more elements than PostgreSQL parses"
	case open == '{' && commas >= maxPairs:
		m.problem = "an object in it has more members than PostgreSQL parses"
	}
	return size + 8
}
