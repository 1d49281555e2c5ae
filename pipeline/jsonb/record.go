package jsonb

import (
	"encoding/binary"
	"errors"
	"math/big"
)

// The opcodes that a record of the reader consists of. It never memoizes and
// stays within protocol 3, which zodbpickle reads.
const (
	opMark          = '('
	opStop          = '.'
	opTuple         = 't'
	opEmptyTuple    = ')'
	opTuple1        = '\x85'
	opTuple2        = '\x86'
	opTuple3        = '\x87'
	opEmptyList     = ']'
	opAppends       = 'e'
	opEmptyDict     = '}'
	opSetItems      = 'u'
	opNone          = 'N'
	opTrue          = '\x88'
	opFalse         = '\x89'
	opBinInt        = 'J'
	opBinInt1       = 'K'
	opBinInt2       = 'M'
	opLong1         = '\x8a'
	opLong4         = '\x8b'
	opBinFloat      = 'G'
	opBinUnicode    = 'X'
	opShortBinBytes = 'C'
	opBinBytes      = 'B'
	opGlobal        = 'c'
	opReduce        = 'R'
	opNewObj        = '\x81'
	opBuild         = 'b'
	opBinPersID     = 'Q'
)

// protocol2 begins both pickles of a record.
const protocol2 = "\x80\x02"

// appendClassPickle writes ((module, name), None), the only class pickle that
// the reader writes. Arguments of a class have no place in it.
func appendClassPickle(dst []byte, module, name string) []byte {
	dst = append(dst, protocol2...)
	dst = appendRecordText(dst, module)
	dst = appendRecordText(dst, name)
	return append(dst, opTuple2, opNone, opTuple2, opStop)
}

func appendRecordText[T string | []byte](dst []byte, text T) []byte {
	dst = append(dst, opBinUnicode)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(text)))
	return append(dst, text...)
}

// appendRecordBytes frames data that the caller has put at the end of dst
// already, so that nothing is decoded into a buffer of its own.
func appendRecordBytes(dst []byte, from int) []byte {
	size := len(dst) - from
	if size < 256 {
		dst = append(dst, 0, 0)
		copy(dst[from+2:], dst[from:from+size])
		dst[from], dst[from+1] = opShortBinBytes, byte(size)
		return dst
	}
	dst = append(dst, 0, 0, 0, 0, 0)
	copy(dst[from+5:], dst[from:from+size])
	dst[from] = opBinBytes
	binary.LittleEndian.PutUint32(dst[from+1:], uint32(size))
	return dst
}

// appendRecordGlobal writes the names as they are. A line break in one of them
// ends it early, in the reader as here; no encoder writes such a name.
func appendRecordGlobal[T string | []byte](dst []byte, module, name T) []byte {
	dst = append(dst, opGlobal)
	dst = append(dst, module...)
	dst = append(dst, '\n')
	dst = append(dst, name...)
	return append(dst, '\n')
}

func appendRecordInt(dst []byte, v int64) []byte {
	switch {
	case 0 <= v && v < 1<<8:
		return append(dst, opBinInt1, byte(v))
	case 0 <= v && v < 1<<16:
		return append(dst, opBinInt2, byte(v), byte(v>>8))
	case -1<<31 <= v && v < 1<<31:
		return binary.LittleEndian.AppendUint32(append(dst, opBinInt), uint32(v))
	}
	size := 5 // shorter ones were BININT
	for size < 8 && v>>(8*size-1) != 0 && v>>(8*size-1) != -1 {
		size++
	}
	dst = append(dst, opLong1, byte(size))
	for range size {
		dst = append(dst, byte(v))
		v >>= 8
	}
	return dst
}

// appendRecordBig writes LONG1 or LONG4 also where a shorter opcode would do, as
// the reader does for @bi.
func appendRecordBig(dst []byte, v *big.Int) []byte {
	raw := littleEndian(v)
	if len(raw) < 256 {
		dst = append(dst, opLong1, byte(len(raw)))
	} else {
		dst = append(dst, opLong4)
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(raw)))
	}
	return append(dst, raw...)
}

// littleEndian is the shortest two's complement of v, one byte for zero.
func littleEndian(v *big.Int) []byte {
	raw := make([]byte, v.BitLen()/8+1)
	if v.Sign() >= 0 {
		v.FillBytes(raw)
	} else {
		// ^x is -x-1, which for negative v is a plain magnitude.
		inverse := new(big.Int).Not(v)
		raw = raw[:inverse.BitLen()/8+1]
		inverse.FillBytes(raw)
		for i := range raw {
			raw[i] = ^raw[i]
		}
	}
	for i, j := 0, len(raw)-1; i < j; i, j = i+1, j-1 {
		raw[i], raw[j] = raw[j], raw[i]
	}
	return raw
}

// parseInteger reads the decimal text of an integer of any size as the codec
// does: one sign, then digits, among which underscores may stand.
func parseInteger(text []byte) (*big.Int, error) {
	negative := len(text) > 0 && text[0] == '-'
	if negative || len(text) > 0 && text[0] == '+' {
		text = text[1:]
	}
	if len(text) == 0 || text[0] == '_' {
		return nil, errors.New("an integer without digits")
	}
	digits := make([]byte, 0, len(text))
	for _, c := range text {
		switch {
		case '0' <= c && c <= '9':
			digits = append(digits, c)
		case c != '_':
			return nil, errors.New("an integer with something else than digits")
		}
	}
	v := parseDigits(digits)
	if negative {
		v.Neg(v)
	}
	return v, nil
}

// parseDigits cuts the digits in halves, because big.Int.SetString takes a time
// that grows with the square of their number.
func parseDigits(digits []byte) *big.Int {
	if len(digits) <= 2000 {
		v, _ := new(big.Int).SetString(string(digits), 10)
		return v
	}
	low := len(digits) / 2
	v := parseDigits(digits[:len(digits)-low])
	v.Mul(v, new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(low)), nil))
	return v.Add(v, parseDigits(digits[len(digits)-low:]))
}
