module guanaco

go 1.19
