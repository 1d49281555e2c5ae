package config

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// variable is ${NAME}, its escape $${, or a ${ that is neither.
var variable = regexp.MustCompile(`\$\$\{|\$\{[A-Za-z_][A-Za-z0-9_]*\}|\$\{`)

// expand puts the values of environment variables in for ${NAME}. What it puts
// in is not looked at again.
func expand(s string, getenv func(string) (string, bool)) (string, error) {
	var failed error
	fail := func(err error) string {
		if failed == nil {
			failed = err
		}
		return ""
	}
	out := variable.ReplaceAllStringFunc(s, func(m string) string {
		switch m {
		case "$${":
			return "${"
		case "${":
			return fail(errors.New("${ is not followed by the name of an environment variable and }; a plain ${ is written $${"))
		}
		name := m[2 : len(m)-1]
		value, ok := getenv(name)
		if !ok {
			return fail(fmt.Errorf("the environment variable %s is not set", name))
		}
		return value
	})
	return out, failed
}

// ParseSize reads a number of bytes as ZConfig writes them: a whole number,
// alone or with KB, MB or GB in any case. One KB is 1024 bytes.
func ParseSize(s string) (int64, error) {
	number, shift := strings.ToLower(strings.TrimSpace(s)), 0
	for unit, bits := range map[string]int{"kb": 10, "mb": 20, "gb": 30} {
		if n, ok := strings.CutSuffix(number, unit); ok {
			number, shift = strings.TrimSpace(n), bits
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, errors.New(`a size is a whole number with KB, MB or GB, such as "256MB"`)
	}
	return n << shift, nil
}
