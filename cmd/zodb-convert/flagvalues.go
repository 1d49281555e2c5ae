package main

import (
	"errors"
	"strconv"

	"github.com/zodb-convert/zodb-convert/internal/config"
)

// maxWorkers keeps a slip of the finger from taking every connection of the
// server.
const maxWorkers = 256

// workersValue is the value of --workers.
type workersValue int

func (v *workersValue) String() string { return strconv.Itoa(int(*v)) }
func (v *workersValue) Type() string   { return "N" }
func (v *workersValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxWorkers {
		return errors.New("the number of workers must be from 1 to 256")
	}
	*v = workersValue(n)
	return nil
}

// minMemory is what the program takes with the smallest database.
const minMemory = 96 << 20

// sizeValue is the value of --memory.
type sizeValue int64

func (v *sizeValue) String() string { return sizeText(int64(*v)) }
func (v *sizeValue) Type() string   { return "SIZE" }
func (v *sizeValue) Set(s string) error {
	n, err := config.ParseSize(s)
	if err != nil {
		return err
	}
	if n < minMemory {
		return errors.New("the memory must be 96MB or more")
	}
	*v = sizeValue(n)
	return nil
}

// sizeText writes a size as it is given on the command line.
func sizeText(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GB", 1 << 30}, {"MB", 1 << 20}, {"KB", 1 << 10}} {
		if n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// formatValue is the value of --log-format.
type formatValue string

func (v *formatValue) String() string { return string(*v) }
func (v *formatValue) Type() string   { return "text" }
func (v *formatValue) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("the log format is text or json")
	}
	*v = formatValue(s)
	return nil
}
