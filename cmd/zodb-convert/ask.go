package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"
)

// errNobody means that there is no terminal to ask on.
var errNobody = errors.New("there is no terminal")

// ask puts a question to the person at the terminal. It asks there and not on
// stderr, which may be a log file. stdin has to be the terminal, too: a program
// in a pipe or started by cron has nobody who could answer.
func (a *app) ask(ctx context.Context, question string) (string, error) {
	if !term.IsTerminal(int(a.stdin.Fd())) {
		return "", errNobody
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", errNobody
	}
	defer tty.Close()
	if _, err := fmt.Fprint(tty, question); err != nil {
		return "", err
	}
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() { // ends when the terminal is closed
		text, err := bufio.NewReader(tty).ReadString('\n')
		read <- line{strings.TrimSpace(text), err}
	}()
	select {
	case l := <-read:
		return l.text, l.err
	case <-ctx.Done():
		fmt.Fprintln(tty)
		return "", ctx.Err()
	}
}
