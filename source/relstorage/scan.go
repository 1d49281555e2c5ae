package relstorage

type scan struct{}
