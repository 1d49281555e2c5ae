package jsonb

import (
	"errors"
	"fmt"
	"math/big"
)

// known writes the types that have a marker of their own.
func (r *Reader) known(f meaning, i, value uint32, depth int) error {
	switch f {
	case meansDatetime:
		return r.datetime(i, r.text(value), depth)
	case meansDate:
		return r.date(r.text(value), depth)
	case meansTime:
		return r.time(i, r.text(value), depth)
	case meansTimedelta:
		return r.timedelta(value, depth)
	case meansDecimal:
		r.out = appendRecordGlobal(r.out, "decimal", "Decimal")
		r.out = appendRecordText(r.out, r.text(value))
		r.out = append(r.out, opTuple1, opReduce)
		return r.limit(below(depth, 2))
	case meansUUID:
		return r.uuid(r.text(value), depth)
	}
	return fmt.Errorf("no way to write meaning %d", f)
}

// clock is a moment as the text of a marker gives it. Nothing but the number of
// digits is checked.
type clock struct {
	year                             uint16
	month, day, hour, minute, second byte
	micro                            uint32
	zoned                            bool
	offset                           int64 // seconds
}

func (r *Reader) datetime(i uint32, text []byte, depth int) error {
	var c clock
	if len(text) < len("2006-01-02T15:04:05") {
		return fmt.Errorf("@dt: %q is too short", text)
	}
	if !c.readDate(text) || !c.readTime(text[11:]) {
		return fmt.Errorf("@dt: cannot read %q", text)
	}
	r.out = appendRecordGlobal(r.out, "datetime", "datetime")
	r.out = append(r.out, opShortBinBytes, 10, byte(c.year>>8), byte(c.year), c.month, c.day,
		c.hour, c.minute, c.second, byte(c.micro>>16), byte(c.micro>>8), byte(c.micro))
	return r.zone(i, &c, depth)
}

func (r *Reader) date(text []byte, depth int) error {
	var c clock
	if len(text) < len("2006-01-02") || !c.readDate(text) {
		return fmt.Errorf("@date: cannot read %q", text)
	}
	r.out = appendRecordGlobal(r.out, "datetime", "date")
	r.out = append(r.out, opShortBinBytes, 4, byte(c.year>>8), byte(c.year), c.month, c.day, opTuple1, opReduce)
	return r.limit(below(depth, 2))
}

func (r *Reader) time(i uint32, text []byte, depth int) error {
	var c clock
	if len(text) < len("15:04:05") || !c.readTime(text) {
		return fmt.Errorf("@time: cannot read %q", text)
	}
	r.out = appendRecordGlobal(r.out, "datetime", "time")
	r.out = append(r.out, opShortBinBytes, 6,
		c.hour, c.minute, c.second, byte(c.micro>>16), byte(c.micro>>8), byte(c.micro))
	return r.zone(i, &c, depth)
}

// zone writes the time zone of a datetime or time, if there is any, and makes
// the call. A zone by name counts more than an offset in the text.
func (r *Reader) zone(i uint32, c *clock, depth int) error {
	deepest := 2
	op := byte(opTuple2)
	switch named := r.member(i, "@tz"); {
	case named != 0:
		levels, err := r.namedZone(named)
		if err != nil {
			return err
		}
		deepest = levels
	case c.zoned:
		deepest = 6
		r.out = appendRecordGlobal(r.out, "datetime", "timezone")
		r.out = appendRecordGlobal(r.out, "datetime", "timedelta")
		r.out = appendRecordInt(r.out, 0)
		r.out = appendRecordInt(r.out, c.offset)
		r.out = appendRecordInt(r.out, 0)
		r.out = append(r.out, opTuple3, opReduce, opTuple1, opReduce)
	default:
		op = opTuple1
	}
	r.out = append(r.out, op, opReduce)
	return r.limit(below(depth, deepest))
}

// namedZone writes a zone of pytz or zoneinfo, and returns how many levels the
// tree of values has below the datetime then.
func (r *Reader) namedZone(i uint32) (int, error) {
	if !r.is(i, jsonObject) {
		return 0, errors.New("@tz must be a dict")
	}
	if arguments := r.member(i, "pytz"); arguments != 0 && r.is(arguments, jsonArray) {
		levels := 3
		r.out = appendRecordGlobal(r.out, "pytz", "_p")
		size := int(r.doc.nodes[arguments].size)
		r.openTuple(size)
		at := arguments + 1
		for range size {
			levels = 4
			if r.is(at, jsonString) {
				r.out = appendRecordText(r.out, r.text(at))
			} else if v, ok := r.small(at); ok {
				r.out = appendRecordInt(r.out, v)
			} else {
				return 0, errors.New("@tz: pytz takes only strings and integers")
			}
			at = r.next(at)
		}
		r.closeTuple(size)
		r.out = append(r.out, opReduce)
		return levels, nil
	}
	key := r.member(i, "zoneinfo")
	if key == 0 || !r.is(key, jsonString) {
		return 0, errors.New("@tz without pytz or zoneinfo")
	}
	r.out = appendRecordGlobal(r.out, "builtins", "getattr")
	r.out = appendRecordGlobal(r.out, "zoneinfo", "ZoneInfo")
	r.out = appendRecordText(r.out, "_unpickle")
	r.out = append(r.out, opTuple2, opReduce)
	r.out = appendRecordText(r.out, r.text(key))
	r.out = appendRecordInt(r.out, 1)
	r.out = append(r.out, opTuple2, opReduce)
	return 5, nil
}

// small is node i as a 64-bit integer. Python counts its bools among them.
func (r *Reader) small(i uint32) (int64, bool) {
	switch r.doc.nodes[i].kind {
	case jsonTrue:
		return 1, true
	case jsonFalse:
		return 0, true
	case jsonInt:
		return smallInteger(r.text(i))
	}
	return 0, false
}

func (r *Reader) timedelta(i uint32, depth int) error {
	r.out = appendRecordGlobal(r.out, "datetime", "timedelta")
	at := i + 1
	for range 3 {
		v, ok := r.small(at)
		if !ok {
			return errors.New("@td takes only integers of 64 bits")
		}
		r.out = appendRecordInt(r.out, v)
		at = r.next(at)
	}
	r.out = append(r.out, opTuple3, opReduce)
	return r.limit(below(depth, 2))
}

func (r *Reader) uuid(text []byte, depth int) error {
	var digits [32]byte
	n := 0
	for _, c := range text {
		if c == '-' {
			continue
		}
		if n == len(digits) {
			return fmt.Errorf("@uuid: %q has more than 32 digits", text)
		}
		digits[n] = c
		n++
	}
	if n < len(digits) {
		return fmt.Errorf("@uuid: %q has less than 32 digits", text)
	}
	if digits[0] == '+' { // the codec's integer parser takes a sign for a digit
		digits[0] = '0'
	}
	var raw [16]byte
	for i, c := range &digits {
		digit, ok := hexDigit(c)
		if !ok {
			return fmt.Errorf("@uuid: %q is not hex", text)
		}
		raw[i/2] = raw[i/2]<<4 | digit
	}
	r.out = appendRecordGlobal(r.out, "uuid", "UUID")
	r.out = append(r.out, opEmptyTuple, opNewObj, opEmptyDict, opMark)
	r.out = appendRecordText(r.out, "int")
	if v := new(big.Int).SetBytes(raw[:]); v.IsInt64() {
		r.out = appendRecordInt(r.out, v.Int64())
	} else {
		r.out = appendRecordBig(r.out, v)
	}
	r.out = append(r.out, opSetItems, opBuild)
	return r.limit(below(depth, 2))
}

// readDate reads YYYY-MM-DD, whatever stands between the numbers.
func (c *clock) readDate(text []byte) bool {
	year, ok := decimal(text[:4], false)
	c.year = uint16(year)
	return ok && readPair(text[5:], &c.month) && readPair(text[8:], &c.day)
}

// readTime reads HH:MM:SS, a fraction and an offset.
func (c *clock) readTime(text []byte) bool {
	if !readPair(text, &c.hour) || !readPair(text[3:], &c.minute) || !readPair(text[6:], &c.second) {
		return false
	}
	rest := text[8:]
	if len(rest) > 0 && rest[0] == '.' {
		rest = rest[1:]
		unit := uint32(100000)
		for len(rest) > 0 && '0' <= rest[0] && rest[0] <= '9' {
			c.micro += unit * uint32(rest[0]-'0')
			unit /= 10 // 0 behind the sixth digit
			rest = rest[1:]
		}
	}
	return c.readOffset(rest)
}

// readOffset reads Z, +HH:MM or -HH:MM; what follows is ignored.
func (c *clock) readOffset(text []byte) bool {
	if len(text) == 0 {
		return true
	}
	c.zoned = true
	if string(text) == "Z" {
		return true
	}
	if text[0] != '+' && text[0] != '-' || len(text) < len("+00:00") || text[3] != ':' {
		return false
	}
	hours, ok1 := decimal(text[1:3], true)
	minutes, ok2 := decimal(text[4:6], true)
	c.offset = hours*3600 + minutes*60
	if text[0] == '-' {
		c.offset = -c.offset
	}
	return ok1 && ok2
}

func readPair(text []byte, into *byte) bool {
	v, ok := decimal(text[:2], false)
	*into = byte(v)
	return ok
}

// decimal reads digits the way of the codec's integer parser, which takes a sign
// in the place of the first.
func decimal(text []byte, signed bool) (int64, bool) {
	negative := signed && text[0] == '-'
	if negative || text[0] == '+' {
		text = text[1:]
	}
	var v int64
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	if negative {
		v = -v
	}
	return v, true
}
