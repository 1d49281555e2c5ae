package jsonb

import (
	"math/big"

	"github.com/zodb-convert/zodb-convert/pipeline/pickle"
)

// known writes the calls by which the common types of the standard library are
// pickled in their short forms, if the reader makes the same call of it again.
// Otherwise the caller writes the call as it is.
func (e *Encoder) known(b []byte, n *pickle.Node, depth int) ([]byte, bool) {
	callable, args := &e.nodes[n.A], &e.nodes[n.B]
	module := e.machine.Data(&e.nodes[callable.A])
	if len(module) < 7 || args.Kind != pickle.Tuple {
		return b, false
	}
	name := e.machine.Data(&e.nodes[callable.B])
	ok := false
	form := DatetimeGeneric
	switch string(module) {
	case "datetime":
		switch string(name) {
		case "datetime", "time", "date", "timedelta":
		default:
			return b, false
		}
	case "decimal":
		if string(name) != "Decimal" {
			return b, false
		}
		form = KnownGeneric
	default:
		return b, false
	}
	if !e.hasItems(n) && depth < maxDepth {
		b, ok = e.knownArgs(b, string(name), e.machine.Kids(args))
	}
	if !ok && !e.asCodecDoes(string(name), args) {
		e.row.Forms[form]++
	}
	return b, ok
}

// asCodecDoes tells whether the Python codec has no short form for these
// arguments either: then the call is nothing special.
func (e *Encoder) asCodecDoes(name string, args *pickle.Node) bool {
	kids := e.machine.Kids(args)
	payload := func(size int) bool {
		return len(kids) > 0 && isOID(&e.nodes[kids[0]]) && int(e.nodes[kids[0]].B) == size
	}
	switch name {
	case "datetime":
		return !payload(10) || len(kids) > 2 || len(kids) == 2 && e.zoneAsCodecDoes(&e.nodes[kids[1]])
	case "time":
		return !payload(6) || len(kids) > 2 || len(kids) == 2 && e.zoneAsCodecDoes(&e.nodes[kids[1]])
	case "date":
		return !payload(4) || len(kids) != 1
	}
	return true
}

// zoneAsCodecDoes tells whether the Python codec has no short form for a time
// zone.
func (e *Encoder) zoneAsCodecDoes(zone *pickle.Node) bool {
	if zone.Kind != pickle.Call {
		return true
	}
	callable := &e.nodes[zone.A]
	return callable.Kind != pickle.Call &&
		!e.isGlobal(callable, "pytz", "_UTC") && !e.isGlobal(callable, "pytz", "_p") &&
		!(e.isGlobal(callable, "datetime", "timezone") && e.nodes[zone.B].B == 1)
}

func (e *Encoder) knownArgs(b []byte, name string, kids []pickle.Ref) ([]byte, bool) {
	switch name {
	case "datetime":
		return e.datetime(b, kids)
	case "time":
		return e.time(b, kids)
	case "date":
		return e.date(b, kids)
	case "timedelta":
		return e.timedelta(b, kids)
	}
	if len(kids) != 1 || !isText(&e.nodes[kids[0]]) {
		return b, false
	}
	text := &e.nodes[kids[0]]
	if text.Kind == pickle.Py2Str {
		e.row.Forms[Python2Text]++
	}
	b = append(b, `{"@dec":`...)
	b = e.plainText(b, text)
	return append(b, '}'), true
}

// payload returns the packed fields of a date or time.
func (e *Encoder) payload(kids []pickle.Ref, size int) []byte {
	if len(kids) == 0 || len(kids) > 2 {
		return nil
	}
	n := &e.nodes[kids[0]]
	if !isOID(n) || int(n.B) != size {
		return nil
	}
	return e.machine.Data(n)
}

// validDate and validTime tell whether the reader takes the text of the fields:
// with the bit of fold, or made up, they are out of range.
func validDate(p []byte) bool {
	year := int(p[0])<<8 | int(p[1])
	return 1 <= year && year <= 9999 && 1 <= p[2] && p[2] <= 12 && 1 <= p[3] && p[3] <= 31
}

func validTime(p []byte) bool {
	return p[0] < 24 && p[1] < 60 && p[2] < 60 && microsecond(p) < 1_000_000
}

func microsecond(p []byte) int { return int(p[3])<<16 | int(p[4])<<8 | int(p[5]) }

func appendDigits(b []byte, v, width int) []byte {
	b = append(b, "000000"[:width]...)
	for i := len(b) - 1; width > 0; i, width = i-1, width-1 {
		b[i] = '0' + byte(v%10)
		v /= 10
	}
	return b
}

func appendDate(b, p []byte) []byte {
	b = appendDigits(b, int(p[0])<<8|int(p[1]), 4)
	b = appendDigits(append(b, '-'), int(p[2]), 2)
	return appendDigits(append(b, '-'), int(p[3]), 2)
}

func appendTime(b, p []byte) []byte {
	b = appendDigits(b, int(p[0]), 2)
	b = appendDigits(append(b, ':'), int(p[1]), 2)
	b = appendDigits(append(b, ':'), int(p[2]), 2)
	if us := microsecond(p); us > 0 {
		b = appendDigits(append(b, '.'), us, 6)
	}
	return b
}

func (e *Encoder) datetime(b []byte, kids []pickle.Ref) ([]byte, bool) {
	p := e.payload(kids, 10)
	if p == nil || !validDate(p) || !validTime(p[4:]) {
		return b, false
	}
	from := len(b)
	b = append(b, `{"@dt":"`...)
	b = appendDate(b, p)
	b = appendTime(append(b, 'T'), p[4:])
	if len(kids) == 1 {
		return append(b, `"}`...), true
	}
	zone := &e.nodes[kids[1]]
	if zone.Kind != pickle.Call || zone.Made != pickle.ByReduce || e.hasItems(zone) {
		return b[:from], false
	}
	if _, ok := zone.State(); ok {
		return b[:from], false
	}
	if minutes, ok := e.offset(zone); ok {
		b = appendOffset(b, minutes)
		return append(b, `"}`...), true
	}
	b = append(b, `","@tz":{`...)
	b, ok := e.zone(b, zone)
	if !ok {
		return b[:from], false
	}
	return append(b, `}}`...), true
}

// offset reads timezone(timedelta(days, seconds, 0)) in whole minutes, which is
// what the text of an offset holds.
func (e *Encoder) offset(zone *pickle.Node) (minutes int, ok bool) {
	args := &e.nodes[zone.B]
	if !e.isGlobal(&e.nodes[zone.A], "datetime", "timezone") || args.Kind != pickle.Tuple || args.B != 1 {
		return 0, false
	}
	delta := &e.nodes[e.machine.Kids(args)[0]]
	if delta.Kind != pickle.Call || delta.Made != pickle.ByReduce || !e.isGlobal(&e.nodes[delta.A], "datetime", "timedelta") || e.hasItems(delta) {
		return 0, false
	}
	if _, ok := delta.State(); ok {
		return 0, false
	}
	fields, ok := e.threeInts(&e.nodes[delta.B])
	if !ok || fields[2] != 0 || fields[0] < -1 || fields[0] > 0 || fields[1] < 0 || fields[1] >= 86400 || fields[1]%60 != 0 {
		return 0, false
	}
	minutes = int(fields[0]*1440 + fields[1]/60)
	return minutes, minutes > -1440
}

// threeInts reads a tuple of three integers.
func (e *Encoder) threeInts(n *pickle.Node) (values [3]int64, ok bool) {
	if n.Kind != pickle.Tuple || n.B != 3 {
		return values, false
	}
	for i, kid := range e.machine.Kids(n) {
		if e.nodes[kid].Kind != pickle.Int {
			return values, false
		}
		values[i] = e.nodes[kid].Int()
	}
	return values, true
}

func appendOffset(b []byte, minutes int) []byte {
	sign := byte('+')
	if minutes < 0 {
		sign, minutes = '-', -minutes
	}
	b = appendDigits(append(b, sign), minutes/60, 2)
	return appendDigits(append(b, ':'), minutes%60, 2)
}

// zone writes the member of @tz for the time zones of pytz and zoneinfo.
func (e *Encoder) zone(b []byte, zone *pickle.Node) ([]byte, bool) {
	args, callable := &e.nodes[zone.B], &e.nodes[zone.A]
	if args.Kind != pickle.Tuple || args.B == 0 || !isText(&e.nodes[e.machine.Kids(args)[0]]) {
		return b, false
	}
	kids := e.machine.Kids(args)
	if e.isGlobal(callable, "pytz", "_p") {
		return e.pytz(b, kids)
	}
	if len(kids) != 2 || e.nodes[kids[1]].Kind != pickle.Int || e.nodes[kids[1]].Int() != 1 || !e.isUnpickle(callable) {
		return b, false
	}
	b = append(b, `"zoneinfo":`...)
	return e.plainText(b, e.countText(kids[0])), true
}

// countText counts a str of Python 2 that becomes text.
func (e *Encoder) countText(r pickle.Ref) *pickle.Node {
	n := &e.nodes[r]
	if n.Kind == pickle.Py2Str {
		e.row.Forms[Python2Text]++
	}
	return n
}

// isUnpickle recognises getattr(zoneinfo.ZoneInfo, "_unpickle").
func (e *Encoder) isUnpickle(callable *pickle.Node) bool {
	if callable.Kind != pickle.Call || callable.Made != pickle.ByReduce || e.hasItems(callable) ||
		!e.isGlobal(&e.nodes[callable.A], "builtins", "getattr") {
		return false
	}
	if _, ok := callable.State(); ok {
		return false
	}
	args := &e.nodes[callable.B]
	if args.Kind != pickle.Tuple || args.B != 2 {
		return false
	}
	kids := e.machine.Kids(args)
	return e.isGlobal(&e.nodes[kids[0]], "zoneinfo", "ZoneInfo") && e.isTextOf(&e.nodes[kids[1]], "_unpickle")
}

func (e *Encoder) pytz(b []byte, kids []pickle.Ref) ([]byte, bool) {
	for _, kid := range kids {
		if n := &e.nodes[kid]; n.Kind != pickle.Int && !isText(n) {
			return b, false
		}
	}
	b = append(b, `"pytz":[`...)
	for i, kid := range kids {
		if i > 0 {
			b = append(b, ',')
		}
		if e.nodes[kid].Kind == pickle.Int {
			b = e.value(b, kid, 0)
		} else {
			b = e.plainText(b, e.countText(kid))
		}
	}
	b = append(b, `],"name":`...)
	return e.plainText(b, &e.nodes[kids[0]]), true
}

// time has no form with the time zones of pytz and zoneinfo that the reader
// would understand everywhere.
func (e *Encoder) time(b []byte, kids []pickle.Ref) ([]byte, bool) {
	p := e.payload(kids, 6)
	if p == nil || !validTime(p) {
		return b, false
	}
	minutes, zoned := 0, len(kids) == 2
	if zoned {
		zone := &e.nodes[kids[1]]
		if zone.Kind != pickle.Call || zone.Made != pickle.ByReduce || e.hasItems(zone) {
			return b, false
		}
		if _, ok := zone.State(); ok {
			return b, false
		}
		var ok bool
		if minutes, ok = e.offset(zone); !ok {
			return b, false
		}
	}
	b = append(b, `{"@time":"`...)
	b = appendTime(b, p)
	if zoned {
		b = appendOffset(b, minutes)
	}
	return append(b, `"}`...), true
}

func (e *Encoder) date(b []byte, kids []pickle.Ref) ([]byte, bool) {
	p := e.payload(kids, 4)
	if p == nil || len(kids) != 1 || !validDate(p) {
		return b, false
	}
	b = append(b, `{"@date":"`...)
	b = appendDate(b, p)
	return append(b, `"}`...), true
}

func (e *Encoder) timedelta(b []byte, kids []pickle.Ref) ([]byte, bool) {
	if len(kids) != 3 {
		return b, false
	}
	for _, kid := range kids {
		if e.nodes[kid].Kind != pickle.Int {
			return b, false
		}
	}
	b = append(b, `{"@td":`...)
	b = e.list(b, kids, 0)
	return append(b, '}'), true
}

// uuidBytes is the size of the number that a UUID is.
const uuidBytes = 16

// uuid writes {"@uuid":...} for a UUID that consists of nothing but its number.
func (e *Encoder) uuid(b []byte, n *pickle.Node, r pickle.Ref, depth int) ([]byte, bool) {
	state := &e.nodes[r]
	if state.Kind != pickle.Dict || !e.isGlobal(&e.nodes[n.A], "uuid", "UUID") {
		return b, false
	}
	kids := e.machine.Kids(state)
	raw, ok := [uuidBytes]byte{}, false
	if len(kids) == 2 && n.Made == pickle.ByNewObj && !e.hasItems(n) && e.isTextOf(&e.nodes[kids[0]], "int") && depth < maxDepth {
		raw, ok = e.uuidNumber(&e.nodes[kids[1]])
	}
	if !ok {
		e.row.Forms[KnownGeneric]++
		return b, false
	}
	e.countText(kids[0])
	b = append(b, `{"@uuid":"`...)
	for i, c := range raw {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, hexDigits[c>>4], hexDigits[c&15])
	}
	return append(b, `"}`...), true
}

func (e *Encoder) uuidNumber(n *pickle.Node) (raw [uuidBytes]byte, ok bool) {
	var v *big.Int
	switch n.Kind {
	case pickle.Int:
		v = big.NewInt(n.Int())
	case pickle.Long:
		if n.B > uuidBytes+1 {
			return raw, false
		}
		v, _ = new(big.Int).SetString(e.machine.Decimal(n), 10)
	default:
		return raw, false
	}
	if v.Sign() < 0 || v.BitLen() > 8*uuidBytes {
		return raw, false
	}
	v.FillBytes(raw[:])
	return raw, true
}
